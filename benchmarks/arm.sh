#!/bin/sh
# Tests on an emulated ARM processor: right or wrong, never how fast. On Debian, as root, in the project's folder:
#
#     sh benchmarks/arm.sh FOLDER -q tests/test_engines.py tests/test_attention.py 2>&1 | tee benchmarks/results/arm.txt
#
# FOLDER gets Python for arm64 from Debian and the ARM wheels of every package with machine code, in the versions of
# .venv; pure Python comes from .venv itself. Tests that start other programs cannot work there.
set -eu
folder=$1
shift
command -v qemu-aarch64-static mmdebstrap > /dev/null ||
	apt-get install -y -qq --no-install-recommends qemu-user-static mmdebstrap
mkdir -p "$folder"
test -d "$folder/root" || mmdebstrap --arch=arm64 --variant=extract --include=python3.11,libgomp1,libstdc++6 bookworm "$folder/root"
if ! test -e "$folder/ready"; then
	platforms=$(seq 17 36 | sed 's/.*/--platform manylinux_2_&_aarch64/')
	# torch: the last whose ARM wheel brings no CUDA; torchvision's would have to match it, and nothing here needs it
	compiled=$(.venv/bin/python - <<-'EOF'
		from importlib.metadata import distributions
		for found in distributions():
		    if any(".so" in file.suffixes for file in found.files or ()) and found.name not in ("torch", "torchvision"):
		        print(found.name + "==" + found.version)
	EOF
	)
	for wheel in torch==2.10.0 $compiled; do
		.venv/bin/pip install -qqq --target "$folder/site" --no-deps --only-binary=:all: --python-version 3.11 \
			--platform manylinux2014_aarch64 $platforms "$wheel" || echo "without $wheel"
	done
	touch "$folder/ready"
fi
echo "sh benchmarks/arm.sh FOLDER $*"
date -u +%F
qemu-aarch64-static --version | head -n 1
PYTHONPATH=$folder/site .venv/bin/python -c "from importlib.metadata import version
for package in ('openvino', 'torch', 'diffusers', 'numpy'):
    print(package, version(package))"
PYTHONHOME=$folder/root/usr PYTHONPATH=src:tests:$folder/site:.venv/lib/python3.11/site-packages \
	qemu-aarch64-static -L "$folder/root" "$folder/root/usr/bin/python3.11" -m pytest -p no:cacheprovider "$@"
