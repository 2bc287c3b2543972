"""Whether this machine can render without a display, and what it lacks if it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

SYSTEM_PACKAGES = ("libegl1", "libgl1", "libegl-mesa0", "libgl1-mesa-dri")
"""Debian and Ubuntu packages that headless rendering on a bare machine needs."""

INSTALL_COMMAND = f"apt-get update && apt-get install -y {' '.join(SYSTEM_PACKAGES)}"

_PROBE = """
from vlm_agent.robot.names import import_robosuite
import_robosuite()
import mujoco
xml = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any(), "the picture is black"
renderer.close()
"""


def rendering_problem() -> str | None:
    """Render a ball in a child process; ``None`` if that works, else the error's last line.

    A child process, because a broken OpenGL library may end it without an exception.
    """
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    return lines[-1] if lines else f"the test ended with exit code {probe.returncode}"


def can_install() -> bool:
    """Whether this process may install system packages here."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_system_packages() -> None:
    """Install :data:`SYSTEM_PACKAGES` with apt-get."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["/bin/sh", "-c", INSTALL_COMMAND], env=environ, check=False)
