# make demo, make test: set up .venv when requirements.txt changed, then run. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
export GOMP_SPINCOUNT ?= 10000  # see common/__init__.py; the tests import torch first

.PHONY: demo demo-camelyon demo-anomaly demo-mil demo-retrieval test torture lint bench clean

demo: $(READY)
	$(RUN) experiments/demo.py mnist

demo-camelyon: $(READY)
	$(RUN) experiments/demo.py camelyon

demo-anomaly: $(READY)
	$(RUN) experiments/demo_anomaly.py

demo-mil: $(READY)
	$(RUN) experiments/demo_mil.py

demo-retrieval: $(READY)
	$(RUN) experiments/demo_retrieval.py

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile

torture: $(READY)  # an hour and a half
	FUZZ_EXAMPLES=60 OMP_NUM_THREADS=1 $(RUN) -m pytest -q -s tests/reliability
	$(RUN) -m pytest -q -m timing
	OMP_NUM_THREADS=1 $(RUN) tests/reliability/torture.py kills
	OMP_NUM_THREADS=1 $(RUN) tests/reliability/torture.py load

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(READY)
	$(RUN) benchmarks/bench_generator.py
	$(RUN) benchmarks/bench_extraction.py
	$(RUN) benchmarks/bench_input.py
	$(RUN) benchmarks/bench_evaluation.py
	$(RUN) benchmarks/bench_memory.py
	$(RUN) benchmarks/bench_training.py
	$(RUN) benchmarks/bench_nearest.py
	$(RUN) benchmarks/bench_anomaly.py
	$(RUN) benchmarks/bench_mil.py

$(READY): requirements.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo
