"""How far decays and gradients reach: variances of kernels with closed forms, shares of an image, windows."""

from math import inf, log, sinh

import pytest
import torch

from sola_profile.case import Resolution
from sola_profile.study.effective_field import window_share
from sola_profile.study.horizon import channel_variances, kernel_variance, layer_variances
from sola_profile.study.mixing import even_mixing
from sola_profile.study.reach import horizon
from sola_profile.study.space import Space
from sola_vision.layers.mixers.decay import DecayAttention
from sola_vision.layers.mixers.linear import LinearAttention
from sola_vision.layers.mixers.wkv import WKV
from sola_vision.presets import get_spec


def test_the_variance_of_a_kernel_has_its_closed_forms():
    decay = DecayAttention(64, 2).double()
    for rate in (0.05, 0.3, 2.0):
        torch.nn.init.constant_(decay.log_rate, log(rate))
        assert kernel_variance(decay, 4096) == pytest.approx(1 / (2 * sinh(rate / 2) ** 2), rel=1e-9)
    wkv = WKV(32, 1, shift=False, decay_per="token").double()
    torch.nn.init.constant_(wkv.decay, 0.3)
    torch.nn.init.constant_(wkv.bonus, 0.3)
    assert kernel_variance(wkv, 4096) > 1 / (2 * sinh(0.15) ** 2) * 0.7
    # nothing fades: the same weight everywhere, N²/12 for many tokens
    torch.nn.init.zeros_(wkv.decay)
    torch.nn.init.zeros_(wkv.bonus)
    assert kernel_variance(wkv, 6000) == pytest.approx(6000**2 / 12, rel=1e-3)
    assert kernel_variance(LinearAttention(32, 1), 16) == inf


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 16, 49])
def test_the_variance_of_a_kernel_is_that_of_the_middle_row(tokens):
    decay, wkv = DecayAttention(64, 2).double(), WKV(6, 1, shift=False).double()
    torch.nn.init.constant_(wkv.bonus, 0.4)
    for mixer in (decay, wkv):
        mixing = even_mixing(mixer, (1, tokens))
        rows = torch.cat([mixing.rows(number, torch.tensor([tokens // 2])) for number in range(mixing.count)])
        distance = (torch.arange(tokens) - tokens // 2).double()
        expected = (rows * distance.square()).sum(-1) / rows.sum(-1)
        torch.testing.assert_close(channel_variances(mixer, tokens), expected.detach())


def test_a_decay_per_sequence_reaches_a_share_of_the_image_and_per_token_a_number_of_tokens():
    def reach(decay_per, side):
        space = Space(get_spec("sola_t").rewired(mixers={"L": ("wkv", {"decay_per": decay_per})}))
        return horizon(layer_variances(space, Resolution(side, side))[4, "L"])

    assert reach("sequence", 512) == pytest.approx(reach("sequence", 128), rel=0.02)
    assert reach("token", 1024) == pytest.approx(reach("token", 512) / 4, rel=0.05)


def test_the_window_that_holds_a_share_of_the_gradient():
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    assert window_share(point, 0.99) == pytest.approx(1 / 81)
    assert window_share(torch.ones(64, 128), 0.25) == pytest.approx(0.25, rel=0.1)
    assert window_share(torch.ones(10, 10), 0.99) == 1
