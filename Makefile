# Every target first makes .venv, with all that it needs. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
# An environment with vLLM, which all clones of one user share: it is 3.4 GB.
VLLM ?= $(or $(SKYTRAIN_VLLM),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/skytrain/vllm)

.PHONY: setup vllm lint test faults-short faults faults-loop demo demo-float8 loop readme bench-packing bench-peers bench-kernels bench-traffic bench-plan bench-host bench-prep bench-check clean

setup: .venv/.ready

# Built without isolation, since skytrain._C is compiled against the torch that is installed here.
.venv/.ready: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@command -v $(PYTHON) > /dev/null || { echo '$(PYTHON): not found; skytrain needs Python 3.11 to 3.13: make setup PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("skytrain needs Python 3.11 to 3.13, and $(PYTHON) is another: make setup PYTHON=python3.12")'
	@echo 'Making .venv with torch and the rest: two to ten minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip setuptools wheel ninja
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[train,prep,dev]'
	@touch $@
	@echo '.venv is ready: . .venv/bin/activate'

# For the CPU: three to eight minutes. The mark's name changes with what would be installed.
VLLM_READY := $(VLLM)/ready-$(shell cat launch/install_vllm.py launch/vllm_constraints.txt | sha256sum | cut -c 1-12)

vllm: $(VLLM_READY)

$(VLLM_READY):
	$(PYTHON) launch/install_vllm.py $(VLLM)
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One thread a process: two test processes with a thread pool each would fight over two cores. Of the files the long
# ones come first (tests/conftest.py), and not those with the most tests.
test: setup
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 SKYTRAIN_VLLM=$(VLLM) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Every command of the pages for people, in a short form: about two minutes. Port 8000 must be free.
readme: setup
	$(BIN)/python -P tests/readme.py

# Runs ended by kill -9 at random moments, and gone on with; the long form takes about half an hour.
faults-short: setup
	$(BIN)/python -P tests/faults.py --kills 20

faults: setup
	$(BIN)/python -P tests/faults.py --kills 200 --record

# The short loop ended by kill -9 in each of its stages: about fifteen minutes.
faults-loop: setup vllm
	$(BIN)/python -P tests/loop_faults.py --vllm $(VLLM) --record

demo: setup
	$(BIN)/python launch/demo.py --overwrite

demo-float8: setup
	$(BIN)/python launch/demo.py --out runs/demo_float8 --overwrite train.float8=rowwise

# The whole system with vLLM: under 25 minutes on two cores, LOOP=short under 6. Started again, it goes on.
loop: setup vllm
	$(BIN)/python launch/loop.py --vllm $(VLLM) $(if $(LOOP),--$(LOOP))

bench-packing: setup
	$(BIN)/python bench/packing.py

# The peers have many dependencies of their own, so they are installed only here and by bench-host.
bench-peers: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' --no-build-isolation
	$(BIN)/python bench/peers.py

# On a GPU, the full comparison at the shapes of a 32B model; on a CPU, the head in fp32 and the rest small.
bench-kernels: setup
	$(BIN)/python bench/microbench.py

bench-traffic: setup
	$(BIN)/python bench/traffic.py

# What the recipes take, by arithmetic and by a trace of the whole step: about ten minutes.
bench-plan: setup
	$(BIN)/python bench/plan.py

# AdamW on host memory. DeepSpeed's operation is compiled when it is first used.
bench-host: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' --no-build-isolation
	$(BIN)/python bench/host_adamw.py

# The client against a server on this machine; verdicts and sandboxed programs a second.
bench-prep: setup
	$(BIN)/python bench/asking.py
	$(BIN)/python bench/grading.py

# Against the stored ratios of a machine of this kind: exit status 1 where the trainer is under 90% of one of them.
# CHECK=--small is what CI runs.
bench-check: setup
	$(BIN)/python bench/throughput.py $(CHECK)

clean:
	rm -rf .venv build runs *.egg-info skytrain/*.so
