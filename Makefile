# Each command makes the virtual environment that it needs, once; setup.cfg names what goes in.
PYTHON ?= python3
VENVS := .venv

.PHONY: help demo ui test test-all test-ui test-ray test-k-diffusion test-matrix test-oldest coverage \
	mutation lint types check tables bench-quick docs dist clean

# The main job on a trained pipeline: pictures without and with the helper as it is by default.
demo: $(VENVS)/demo/ready
	$(VENVS)/demo/bin/python -m deepcache_patch compare benchmarks/models/shapes \
		--prompt "a small red circle above a large blue square" \
		--prompt "a large green triangle left of a small yellow circle" \
		--prompt "a large red star above a small blue triangle" \
		--prompt "a small blue star, a large yellow circle and a small red triangle" \
		--guidance-scale 4 --scheduler ddim --steps 50 --repeats 3 --output demo

# The same as a page in the browser, to play with.
ui: $(VENVS)/ui/ready
	$(VENVS)/ui/bin/python -m deepcache_patch ui benchmarks/models/shapes --scheduler ddim

# What can be made: each target, with the first line of the comment above it.
help:
	@awk '/^# / { if (!said) said = substr($$0, 3) } \
		/^[a-z-]+:/ && said { sub(/:.*/, ""); printf "%-12s %s\n", $$0, said } \
		!/^# / { said = "" }' $(firstword $(MAKEFILE_LIST))

# The tests, in as many processes as there are cores.
test: $(VENVS)/test/ready
	$(VENVS)/test/bin/python -m pytest -n auto --dist worksteal -q

# The tests, and also those that are marked slow.
test-all: $(VENVS)/test/ready
	$(VENVS)/test/bin/python -m pytest -n auto --dist worksteal -q -m "slow or not slow"

# The tests of the page, which `make test` leaves out where there is no gradio.
# Those in a browser need chromium and chromedriver.
test-ui: $(VENVS)/ui/ready
	$(VENVS)/ui/bin/python -m pytest -q -m "slow or not slow" tests/page

# The tests of the scripts that need Ray, which `make test` leaves out: Ray is large, and slow to start.
test-ray: $(VENVS)/ray/ready
	$(VENVS)/ray/bin/python -m pytest -q -m "slow or not slow" tests/examples/test_ray.py

# The tests with k-diffusion's samplers, which `make test` leaves out.
# Without what k-diffusion needs for training: that goes neither with numpy 2 nor with torch of today.
test-k-diffusion: $(VENVS)/test/ready
	$(VENVS)/test/bin/python -m pip install --quiet --no-deps --constraint constraints.txt \
		--upgrade --target $(VENVS)/k-diffusion k-diffusion torchdiffeq torchsde trampoline
	PYTHONPATH=$(VENVS)/k-diffusion $(VENVS)/test/bin/python -m pytest -q \
		tests/running/test_kdiffusion.py tests/examples/test_examples.py -k "kdiffusion or k_diffusion"

# The core tests under the oldest and the newest versions that are supported.
# With every Python of theirs that is at hand; a table at the end.
test-matrix:
	$(PYTHON) .ci/matrix.py

# The core tests under the oldest versions, with one Python only.
test-oldest:
	$(PYTHON) .ci/matrix.py oldest --once

# Which lines and branches of src/ no test reaches.
coverage: $(VENVS)/test/ready
	$(VENVS)/test/bin/python -m pytest -n auto --dist worksteal -q --cov

# Does a test fail for every small change? Writes benchmarks/results/mutation.json; takes hours.
mutation: $(VENVS)/mutation/ready
	rm -rf mutants
	OMP_NUM_THREADS=1 $(VENVS)/mutation/bin/python -m benchmarks.coverage.mutation

# ruff, its formatter, and which room of the package may import which.
lint: $(VENVS)/test/ready
	$(VENVS)/test/bin/ruff check .
	$(VENVS)/test/bin/ruff format --check .
	$(VENVS)/test/bin/lint-imports

# mypy, strict.
types: $(VENVS)/test/ready
	$(VENVS)/test/bin/mypy

# What has to pass before a change is handed in.
check: lint types test

$(VENVS)/demo/ready: EXTRAS = compare
$(VENVS)/test/ready: EXTRAS = test,check,benchmarks
$(VENVS)/ui/ready: EXTRAS = test,ui
$(VENVS)/ray/ready: EXTRAS = test,ray
$(VENVS)/mutation/ready: EXTRAS = test,mutation
$(VENVS)/docs/ready: EXTRAS = docs
$(VENVS)/%/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# What builds the package needs nothing that the package needs.
$(VENVS)/dist/ready: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt build twine
	touch $@

# The tables of README and docs, from the results files and the tests.
tables: $(VENVS)/test/ready
	$(VENVS)/test/bin/python -m benchmarks.tables

# The benchmarks of speed and cost in small, to see that they run: about ten minutes on one core.
bench-quick: $(VENVS)/test/ready
	for name in speed cost.memory cost.overhead cost.scaling; do \
		$(VENVS)/test/bin/python -m benchmarks.$$name --quick --output bench || exit 1; \
	done

# The documentation as a site, in site/; any warning is an error.
docs: $(VENVS)/docs/ready
	NO_MKDOCS_2_WARNING=1 $(VENVS)/docs/bin/mkdocs build --strict

# Source distribution and wheel in dist/, and the wheel in an environment that has nothing else.
dist: $(VENVS)/dist/ready
	rm -rf build dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(VENVS)/dist/bin/python -m build
	$(VENVS)/dist/bin/python -m twine check --strict dist/*
	$(PYTHON) .ci/wheel.py dist $(VENVS)/wheel

# Everything that was made is deleted, the virtual environments too.
clean:
	rm -rf $(VENVS) build dist site demo bench mutants
