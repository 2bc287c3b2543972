"""Whether this machine can render without a display, with what, and what it lacks if it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from vlm_agent.world.render.gl import DEVICE_VARIABLE, LIBRARIES, settle_backend

SYSTEM_PACKAGES = ("libegl1", "libgl1", "libegl-mesa0", "libgl1-mesa-dri")
"""Debian and Ubuntu packages that headless rendering on a bare machine needs."""

INSTALL_COMMAND = f"apt-get update && apt-get install -y {' '.join(SYSTEM_PACKAGES)}"

PROBE = """
from vlm_agent.world.robosuite.names import import_mujoco
mujoco = import_mujoco()
from vlm_agent.world.render.gl import make_context, renderer_name
xml = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(xml)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
context = make_context(32)
name = renderer_name()
renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, renderer)
scene, camera = mujoco.MjvScene(model, 100), mujoco.MjvCamera()
mujoco.mjv_defaultFreeCamera(model, camera)
mujoco.mjv_updateScene(
    model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene
)
import numpy as np
pixels, rect = np.zeros((32, 32, 3), np.uint8), mujoco.MjrRect(0, 0, 32, 32)
mujoco.mjr_render(rect, scene, renderer)
mujoco.mjr_readPixels(pixels, None, rect, renderer)
assert pixels.any(), "the picture is black"
renderer.free()
context.free()
print(name)
"""
"""Renders a ball and prints what drew it, or fails."""


@dataclass(frozen=True)
class Finding:
    """What came of rendering a ball with one backend.

    Attributes:
        backend: A value of ``MUJOCO_GL``.
        renderer: What drew it, in the driver's words; ``None`` if it did not work.
        problem: Why it did not.
    """

    backend: str
    renderer: str | None
    problem: str | None = None

    def __str__(self) -> str:
        if self.renderer is None:
            return f"{self.backend:<8}does not work: {self.problem}"
        on = "the CPU" if "pipe" in self.renderer else "a GPU"  # llvmpipe, softpipe
        return f"{self.backend:<8}works on {on}: {self.renderer}"


def examine() -> list[Finding]:
    """Try the backend that is used here, then the other headless ones."""
    used = settle_backend()
    return [probe(backend) for backend in dict.fromkeys((used, *LIBRARIES))]


def probe(backend: str, code: str = PROBE) -> Finding:
    """Render a ball in a child process, because a broken OpenGL library may end it silently."""
    environ = {**os.environ, "MUJOCO_GL": backend}
    environ.pop("PYOPENGL_PLATFORM", None)
    child = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True
    )
    if child.returncode == 0:
        return Finding(backend, child.stdout.strip())
    lines = child.stderr.strip().splitlines()
    last = lines[-1] if lines else f"it ended with {child.returncode}"
    return Finding(backend, None, last.partition("UserError: ")[2] or last)


def advice(findings: list[Finding]) -> str | None:
    """What to do so that rendering works; ``None`` if it does with the first one."""
    if findings[0].renderer is not None:
        return None
    works = [finding.backend for finding in findings if finding.renderer is not None]
    if works:
        return f"use the one that works: export MUJOCO_GL={works[0]}"
    hint = f", and check {DEVICE_VARIABLE}" if DEVICE_VARIABLE in os.environ else ""
    return f"on Debian or Ubuntu, as root: {INSTALL_COMMAND}{hint}"


def can_install() -> bool:
    """Whether this process may install system packages here."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_system_packages() -> None:
    """Install :data:`SYSTEM_PACKAGES` with apt-get."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["/bin/sh", "-c", INSTALL_COMMAND], env=environ, check=False)
