# make demo, make test: each sets up .venv by itself. MODEL: where the small model's folder is kept.
VENV  ?= .venv
MODEL ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/adakv-sglang/smollm2-135m-instruct
PY     = $(VENV)/bin/python

export ADAKV_TEST_MODEL = $(MODEL)

.PHONY: setup demo test lint fuzz bench
setup:
	@tests/equipment/setup.sh $(VENV) $(MODEL)

demo: setup
	@$(PY) examples/demo.py --model $(MODEL)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: setup lint
	$(PY) -m pytest -q -m "not gpu"

fuzz: setup
	ADAKV_FUZZ_STEPS=200000 $(PY) -m pytest -q -s tests/integration/test_ledger_fuzz.py

bench: setup
	@$(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "bench: expected a CUDA device, got none; see benchmarks/README.md" >&2; exit 1; }
	$(PY) benchmarks/kernels/prefix_batch.py
	$(PY) benchmarks/kernels/compression.py
	$(PY) benchmarks/serving/shared_prefix.py --model $(MODEL) --short --document-tokens 4096
