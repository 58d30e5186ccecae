"""``python -m sola_profile`` is ``sola-profile``."""

from sola_profile.cli import main

if __name__ == "__main__":
    main()
