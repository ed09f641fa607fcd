"""Files that are generated from the queue contract and the table of components.

`make docs` and `make up` write the files that are out of date.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.components import Component, components
from deploy.places import REPOSITORY
from fleet.contract import queues, queues_env

GPU_FILE = """\
# Gives the GPU workers this machine's GPUs: name this file in COMPOSE_FILE, as .env.example shows.
# Not in docker-compose.yml, because on a machine without a GPU the engine would refuse to start
# them. Follows from queues.toml: `make docs` writes it.
x-gpus: &gpus
  deploy:
    resources:
      reservations:
        devices:
          - {driver: nvidia, count: all, capabilities: [gpu]}

services:
"""
PAGE = REPOSITORY / "docs" / "least-privilege.md"
BEGIN, END = "<!-- deploy/components.py -->\n", "<!-- end -->\n"
HEAD = """\
| service | secrets of `.env` | networks | volumes, folders | memory | published |
| --- | --- | --- | --- | --- | --- |
"""


def gpu_file() -> str:
    """The Compose file that gives every worker of a gpu queue the machine's GPUs."""
    names = [queue.name for queue in queues().values() if queue.resource == "gpu"]
    return GPU_FILE + "".join(f"  {name}-worker: *gpus\n" for name in names)


def page() -> str:
    """The text of docs/least-privilege.md, with the current table between `BEGIN` and `END`."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "".join(_row(name, component) for name, component in components().items())
    return f"{before}{BEGIN}\n{HEAD}{rows}\n{END}{after}"


def _row(name: str, component: Component) -> str:
    profile = f" (profile `{component.profile}`)" if component.profile else ""
    parts = (component.secrets, component.networks, component.volumes)
    listed = (" ".join(f"`{each}`" for each in sorted(part)) for part in parts)
    published = "`127.0.0.1`" if component.port else ""
    cells = [f"`{name}`{profile}", *listed, component.memory, published]
    return f"| {' | '.join(cells)} |\n"


GENERATED: Mapping[Path, Callable[[], str]] = {
    REPOSITORY / "deploy" / "queues.env": queues_env,
    REPOSITORY / "deploy" / "compose" / "gpu.yml": gpu_file,
    PAGE: page,
}


def write() -> list[Path]:
    """Write the generated files that are out of date; returns their paths."""
    changed = []
    for path, text in GENERATED.items():
        if path.read_text(encoding="utf-8") != (new := text()):
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
