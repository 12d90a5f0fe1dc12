"""Install a real SGLang that runs on a CPU, once, into a cache; `make test-engine` calls it.

    python tests/engine/install.py          installs if needed and prints the interpreter to use

SGLang publishes no CPU wheels of its own kernels, so its closure is installed package by package from
`requirements.lock` (no dependency resolution), and `stubs/` stands in for the CUDA-only parts. What moves KV between servers is in
`transfer.lock`.
Home: $WARMPATH_ENGINE_HOME, else ${XDG_CACHE_HOME:-~/.cache}/warmpath/sglang-0.5.23-cpu (about 3 GB).
Exit status: 0 installed; 3 this machine cannot run it (the last line on stderr says why); 1 the installation failed.
"""

import hashlib
import os
import platform
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
TRANSFER_LOCK = HERE / "transfer.lock"
STUBS = HERE / "stubs"
# The first that the package index has: a CPU build is some GB smaller than the default one.
TORCH = ("torch==2.13.0+cpu", "torch==2.13.0")
PYTHON = (3, 11)  # the bundled tree core and the pins are proven on this one only
IMPORT_CHECK = "import torch, sglang.srt.server_args, sglang.srt.disaggregation.kv_events"


def home() -> Path:
    """The installation's folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("WARMPATH_ENGINE_HOME") or cache / "warmpath" / "sglang-0.5.23-cpu")


def interpreter() -> Path:
    """The interpreter that can run `-m sglang.launch_server`."""
    return home() / "venv" / "bin" / "python"


def environment() -> dict[str, str]:
    """Environment variables that make SGLang start without CUDA and without a network."""
    return {
        **os.environ,
        "PYTHONPATH": str(STUBS),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def installed() -> bool:
    """Whether the current lock file is what the cache holds."""
    stamp = home() / "installed"
    return interpreter().exists() and stamp.exists() and stamp.read_text() == fingerprint()


def transfers() -> bool:
    """Whether what moves KV between servers is there as well; it is added to an installation without making it anew."""
    stamp = home() / "installed-transfer"
    return installed() and stamp.exists() and stamp.read_text() == TRANSFER_LOCK.read_text()


def fingerprint() -> str:
    """Identity of what would be installed."""
    return hashlib.sha256(LOCK.read_bytes() + repr(TORCH).encode()).hexdigest()


def unsupported() -> str | None:
    """Why this machine cannot run it, or None."""
    if sys.version_info[:2] != PYTHON:
        return f"the engine's pins need CPython {PYTHON[0]}.{PYTHON[1]}, this is {platform.python_version()}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"the engine's wheels need Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    return None


def pip(*arguments: str) -> bool:
    """Run pip in the engine's environment; its output goes to pip.log."""
    command = [str(interpreter()), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
    with (home() / "pip.log").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=log).returncode == 0


def install() -> None:
    """Build the environment from nothing; raises RuntimeError with what failed."""
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[engine {time.monotonic() - started:4.0f} s] {what}", file=sys.stderr, flush=True)

    say(f"creating {home()}")
    venv.create(home() / "venv", clear=True, with_pip=True)
    say("torch, CPU build if the index has one")
    if not (pip("--no-deps", TORCH[0]) or pip(TORCH[1])):
        raise RuntimeError(f"torch could not be installed; see {home() / 'pip.log'}")
    say("SGLang and its closure, from the lock file")
    if not pip("--no-deps", "-r", str(LOCK)):
        raise RuntimeError(f"the lock file could not be installed; see {home() / 'pip.log'}")
    say("checking that it imports")
    subprocess.run([str(interpreter()), "-c", IMPORT_CHECK], env=environment(), check=True)
    (home() / "installed").write_text(fingerprint())
    say("ready")


def install_transfer() -> None:
    """Add what moves KV; raises RuntimeError with what failed."""
    if not pip("--no-deps", "-r", str(TRANSFER_LOCK)):
        raise RuntimeError(f"{TRANSFER_LOCK.name} could not be installed; see {home() / 'pip.log'}")
    (home() / "installed-transfer").write_text(TRANSFER_LOCK.read_text())


def main() -> int:
    """Install if needed; see the module's text for the exit status."""
    if reason := unsupported():
        print(reason, file=sys.stderr)
        return 3
    home().mkdir(parents=True, exist_ok=True)
    try:
        if not installed():
            install()
        if not transfers():
            install_transfer()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"installation failed: {error}", file=sys.stderr)
        return 1
    print(interpreter())
    return 0


if __name__ == "__main__":
    sys.exit(main())
