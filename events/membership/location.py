"""Where the file registry lies when nobody says otherwise: routers and adapters of one machine find each other."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DEFAULT_DISCOVERY_PATH = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / "warmpath"
