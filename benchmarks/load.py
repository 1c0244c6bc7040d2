"""Loading benchmark: seconds and memory that a full-size model takes, for each precision in a fresh process.

python benchmarks/load.py [--size demo] [--directory DIR]    writes results/load-<device>.json (-demo: only prints)

Without a directory it writes one of zeros (11 GB, deleted afterwards) with the files of ModelScope's release: the UNet,
a whole checkpoint around the autoencoder, and an OpenCLIP model with its image tower. They are read once before each
measurement, so that the disk does not count. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

START = time.perf_counter()  # before the imports, which are timed as well

import torch  # noqa: E402
from open_clip.transformer import TextTransformer  # noqa: E402
from torch import Tensor  # noqa: E402

from sdvideo_core import SDVideo  # noqa: E402
from sdvideo_core.config import ModelConfig, TextConfig, UNetConfig, VAEConfig  # noqa: E402
from sdvideo_core.configuration import configuration  # noqa: E402
from sdvideo_core.demo.untrained import make_demo_model  # noqa: E402
from sdvideo_core.unet import UNetSD  # noqa: E402
from sdvideo_core.vae import AutoencoderKL  # noqa: E402

DTYPES = ("float32", "float16")
IMAGE_TOWER = {f"visual.transformer.resblocks.{i}.weight": (632_076_800 // 32,) for i in range(32)}  # ViT-H-14's
IMAGE_UNET = {f"model.diffusion_model.{i}.weight": (10_000_000,) for i in range(25)}  # 1 GB beside the autoencoder
FULL_SIZE_BYTES = 12 * 10**9


def write_full_size(directory: Path) -> None:
    config, text = ModelConfig(), TextConfig()
    with torch.device("meta"):
        unet = UNetSD(UNetConfig()).state_dict()
        vae = AutoencoderKL(VAEConfig()).state_dict()
        tower = TextTransformer(
            text.context_length, text.vocab_size, text.width, text.heads, text.layers, output_dim=text.width
        ).state_dict()
    vae = {f"first_stage_model.{key}": value.shape for key, value in vae.items()}
    torch.save(zeros(shapes(unet)), directory / config.unet_file)
    torch.save({"epoch": 1, "state_dict": zeros(IMAGE_UNET | vae)}, directory / config.vae_file)
    torch.save(zeros(shapes(tower) | IMAGE_TOWER), directory / config.text_file)
    (directory / "configuration.json").write_text(json.dumps(configuration(config)), encoding="utf-8")


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def zeros(sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.zeros(size) for key, size in sizes.items()}


def read_into_page_cache(directory: Path) -> int:
    """Returns the bytes of all files."""
    total = 0
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 24):
                total += len(chunk)
    return total


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


@contextlib.contextmanager
def peak_of_anonymous() -> Iterator[list[int]]:
    """Samples it every 5 ms, as the kernel keeps no peak of it; the list holds the peak so far."""
    peak, done = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], memory("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    done.set()
    thread.join()


def measure(directory: Path, dtype: str, device: str) -> dict[str, float]:
    """Loads in this process; `first use` reads every weight once, which a memory-mapped file defers until then."""
    imported = time.perf_counter() - START
    rss, anonymous = memory("VmRSS"), memory("RssAnon")
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM counts from here
    with peak_of_anonymous() as peak:
        start = time.perf_counter()
        model = SDVideo(directory, device, getattr(torch, dtype))
        loaded = time.perf_counter()
        weights = [w for part in (model.unet, model.vae, model.text_encoder) for w in part.parameters()]
        _ = [w.detach().max().item() for w in weights]
        used = time.perf_counter()
    return {
        "import_seconds": imported,
        "load_seconds": loaded - start,
        "first_use_seconds": used - loaded,
        "bytes_kept": sum(w.numel() * w.element_size() for w in weights),
        "rss_before": rss,
        "peak_rss": memory("VmHWM"),
        "anonymous_before": anonymous,
        "peak_anonymous": peak[0],
        "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
    }


def measure_in_child(directory: Path, dtype: str, device: str) -> dict[str, float]:
    read_into_page_cache(directory)
    command = [sys.executable, __file__, "--directory", str(directory), "--measure", dtype, "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def summary(rounds: list[dict[str, float]]) -> dict[str, float | list[float]]:
    """Median seconds and largest memory, in total and as a ratio to the bytes of the weights kept."""
    seconds = [key for key in rounds[0] if key.endswith("_seconds")]
    worst = {key: max(r[key] for r in rounds) for key in rounds[0] if key not in seconds}
    return {
        **{key: round(statistics.median(r[key] for r in rounds), 3) for key in seconds},
        "all_load_seconds": [round(r["load_seconds"], 3) for r in rounds],
        **worst,
        "peak_rss_ratio": round(worst["peak_rss"] / worst["bytes_kept"], 3),
        "peak_anonymous_ratio": round(worst["peak_anonymous"] / worst["bytes_kept"], 3),
    }


def compare(directory: Path, args: argparse.Namespace) -> dict[str, object]:
    size = read_into_page_cache(directory)
    runs = {dtype: [] for dtype in DTYPES}
    for _ in range(args.rounds):
        for dtype in DTYPES:
            runs[dtype].append(measure_in_child(directory, dtype, args.device))
    return {
        "what": f"SDVideo(directory), {args.size} size, float32 files of {size} bytes in the page cache",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{dtype: summary(rounds) for dtype, rounds in runs.items()},
    }


@contextlib.contextmanager
def model_directory(args: argparse.Namespace) -> Iterator[Path]:
    if args.directory:
        yield args.directory
        return
    with tempfile.TemporaryDirectory() as name:
        if args.size == "demo":
            make_demo_model(name, dtype=torch.float32)
        elif shutil.disk_usage(name).free < FULL_SIZE_BYTES:
            raise SystemExit(f"{name} has less than {FULL_SIZE_BYTES} bytes free; set TMPDIR to a larger disk")
        else:
            write_full_size(Path(name))
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full", choices=["full", "demo"])
    parser.add_argument("--directory", type=Path, help="a model to load instead of one of zeros")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", choices=DTYPES, help="print one measurement of --directory in this process")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.directory, args.measure, args.device)))  # noqa: T201
        return
    with model_directory(args) as directory:
        text = json.dumps(compare(directory, args), indent=2)
    if args.size == "full" and not args.directory:
        target = Path(__file__).parent / "results" / f"load-{args.device}.json"
        target.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
