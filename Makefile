# make demo: set everything up, then run the whole pipeline on the embedded systems; ends with results/report.html
# make test: set everything up, then check style and run the tests
PYTHON ?= python3.11
CORES ?= 2
FASHION_MNIST := /usr/share/datasets/fashion-mnist
BIN := .venv/bin
# one shell line: what every command needs to find the tools of the environment
ACTIVATE := export PATH="$(CURDIR)/$(BIN):$$PATH";

.PHONY: demo test test-slow test-tools debian-packages

demo: .venv/ready
	@$(ACTIVATE) snakemake --cores $(CORES)
	@echo "The report is results/report.html"

test: test-tools
	@$(ACTIVATE) ruff check .
	@$(ACTIVATE) ruff format --check .
	@$(ACTIVATE) snakefmt --check Snakefile workflow/rules
	@$(ACTIVATE) snakemake --lint
	@$(ACTIVATE) python -m pytest -q -n $(CORES) --dist worksteal

# whole systems, one at full size: minutes and gigabytes
test-slow: test-tools
	@$(ACTIVATE) python -m pytest -q -m slow

# pip and apt-get beside each other
test-tools:
	@$(MAKE) --no-print-directory --jobs=2 .venv/ready debian-packages

# a third of all modules, of which hardly any is ever imported
SELDOM := transformers/models|diffusers/(modular_)?pipelines|sklearn|torch/(_inductor|testing)|fontTools|pygments

# with the pip that comes with Python 3.11 it would take nearly half as long again; pip would compile the modules one
# after the other
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests|$(SELDOM))/' .venv/lib > /dev/null || true # some are no Python
	@touch $@

# what the tests need from Debian: real images (the demo's statistics of them are in assets/), a browser for the page,
# an SSH server for a DVC remote and a Slurm of one node
debian-packages:
	@{ test -d $(FASHION_MNIST) && command -v chromium > /dev/null && test -x /usr/sbin/sshd \
		&& test -x /usr/sbin/slurmctld && test -x /usr/sbin/slurmd && test -x /usr/sbin/munged; } \
		|| ! command -v apt-get > /dev/null || $(MAKE) --no-print-directory install-debian-packages

.PHONY: install-debian-packages
install-debian-packages:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends dataset-fashion-mnist chromium munge openssh-server slurm-wlm
