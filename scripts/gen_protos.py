"""Generates sdk/baton/api from protos/. The only place protoc runs; its output is committed.

python scripts/gen_protos.py           write sdk/baton/api
python scripts/gen_protos.py --check   fail if the committed code differs
"""

import argparse
import filecmp
import importlib.metadata
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
API = ROOT / "sdk" / "baton" / "api"
# 1.76 generates code that loads on every protobuf runtime from 6.31 on; newer generators refuse the runtimes that vLLM pins.
GENERATOR = "1.76.0"


def generate(out: Path) -> Path:
    """Writes the package tree under `out` and returns its `baton/api` folder."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    arguments = [f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *arguments, *sources]) != 0:
        raise SystemExit("protoc failed; its message is above")
    api = out / "baton" / "api"
    for folder in [api, *(path for path in api.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    for stub in api.rglob("*_pb2_grpc.py"):
        if "Stub" not in stub.read_text():  # message-only files have no service
            stub.unlink()
    return api


def differences(generated: Path, committed: Path) -> list[str]:
    """Paths whose content differs between the two trees."""
    names = {
        path.relative_to(tree) for tree in (generated, committed) for path in tree.rglob("*.py*") if path.suffix != ".pyc"
    }
    return sorted(
        str(name)
        for name in names
        if not (generated / name).exists()
        or not (committed / name).exists()
        or not filecmp.cmp(generated / name, committed / name, shallow=False)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    installed = importlib.metadata.version("grpcio-tools")
    if installed != GENERATOR:
        raise SystemExit(f"grpcio-tools {installed} is installed, but the generated code is made with {GENERATOR}")
    with tempfile.TemporaryDirectory() as folder:
        api = generate(Path(folder))
        if not options.check:
            shutil.rmtree(API, ignore_errors=True)
            shutil.copytree(api, API)
        elif stale := differences(api, API):
            sys.exit("sdk/baton/api is not what protos/ generates; run `make protos`:\n  " + "\n  ".join(stale))


if __name__ == "__main__":
    main()
