# make profile   set everything up and run the main job
# make test      set everything up and pass the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CXX_FILES = $(shell find csrc tests/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup build profile test lint sanitize races ptx format docs reports experiment-report kernels-reports gpu cuda-report clean

setup: $(READY) build

# the build needs the torch that will be used, hence no isolation
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) torch==2.13.0 setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# compiles what has changed
build: $(READY)
	@$(BIN)/python setup.py --quiet build_ext --inplace

profile: setup
	$(BIN)/sola-profile --model sola_t --res 224,512,1024

# a file of tests stays in one process; processes share the cores, so that waiting threads had better sleep than spin
test: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

# every case, and what else reads odd memory, under AddressSanitizer and UndefinedBehaviorSanitizer; then the CUDA kernels
# in the emulator under AddressSanitizer, where every thread's reads and writes are checked
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined
CHECKED := values layout numerics property
EMULATED := CXXFLAGS="-g1 -fsanitize=address" LDFLAGS="-fsanitize=address"
sanitize: setup
	SOLA_CUDA=0 CXXFLAGS="-O1 -g -fno-omit-frame-pointer $(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(BIN)/python setup.py --quiet \
		build --build-lib $(SANITIZED) --build-temp $(SANITIZED)-objects
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=$(SANITIZED) $(BIN)/pytest -p no:cacheprovider tests/test_bad_input.py $(CHECKED:%=tests/test_ops_%.py)
	$(EMULATED) $(BIN)/python tests/emulator/build.py
	$(EMULATED) LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 $(BIN)/pytest -p no:cacheprovider \
		tests/test_emulator.py tests/test_cuda_emulated.py tests/test_hopper_emulated.py

# the CUDA kernels in the emulator with every access to shared and global memory watched: ten minutes
WATCHED := CXXFLAGS=-DSOLA_RACES
races: setup
	$(WATCHED) $(BIN)/python tests/emulator/build.py
	$(WATCHED) $(BIN)/pytest -p no:cacheprovider tests/test_emulator.py tests/test_cuda_emulated.py tests/test_hopper_emulated.py

# the same tests with what nvcc makes of the kernels, its PTX, in the place of their source: 15 to 18 minutes, needs nvcc
ptx: setup
	SOLA_PTX=90 $(BIN)/python tests/emulator/build.py
	SOLA_PTX=90 $(BIN)/pytest -p no:cacheprovider tests/test_emulator.py tests/test_cuda_emulated.py tests/test_hopper_emulated.py

# on a machine with a GPU: build, cuda tests, benchmark and compute-sanitizer in one call under ten minutes
gpu:
	@.ci/gpu

# registers and spills of the kernels, as ptxas told them in the last build, against csrc/cuda/registers.txt
cuda-report: setup
	$(BIN)/python csrc/cuda/report.py

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

# every figure of the docs, measured anew on this machine, which must be quiet: an hour, with pauses in which the load
# of the run before dies down
PAUSE := sleep 80
SOME := 1x6x1024x64,1x6x4096x64,1x16384x96
SIZES := 224,320,448,640,896,1280,2048
docs: reports kernels-reports experiment-report

# every model's report
reports: setup
	$(BIN)/sola-profile audit --out docs/reports
	$(BIN)/sola-profile --model sola_t --res 224,512,1024,2048 --budget 110
	$(PAUSE)
	$(BIN)/sola-profile --model sola_s --res $(SIZES) --budget 130
	$(PAUSE)
	$(BIN)/sola-profile --model sola_b --res $(SIZES) --budget 150
	$(PAUSE)
	$(BIN)/sola-profile --model sola_s --with sola_s_llls,sola_s_llss,sola_s_lasthalf --res 224,320,448 --budget 120 \
		--out docs/reports/patterns
	$(PAUSE)
	SOLA_MACHINES=build/machines $(BIN)/sola-profile predict --accuracy --budget 25
	cp build/machines/accuracy/*.json sola_profile/machines/accuracy
	$(PAUSE)
	$(BIN)/sola-profile place --model sola_t --res 512 --swap 3.4=S --budget 60 --out docs/reports/placement
	$(BIN)/sola-profile study --model sola_t --res 224,512 --out docs/reports/study

# two hours on two cores, of which only what runs.csv lacks is done
experiment-report: setup
	$(BIN)/sola-profile experiment --mixer wkv,linear,decay

kernels-reports: setup
	$(BIN)/sola-profile kernels --no-compile --budget 600
	$(PAUSE)
	$(BIN)/sola-profile kernels --op linear_attention,causal_decay_attention,wkv --shape $(SOME) --mode forward \
		--threads all --budget 60 --out docs/reports/compiled
	$(PAUSE)
	SOLA_ISA=avx2 $(BIN)/sola-profile kernels --no-compile --shape $(SOME) --threads 1 --budget 120 --out docs/reports/avx2

clean:
	rm -rf build dist *.egg-info sola_vision/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
