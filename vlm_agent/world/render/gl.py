"""OpenGL without a display: which library, which GPU, and the context to draw in."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

LIBRARIES: dict[str, tuple[str, ...]] = {
    "egl": ("libEGL.so.1",),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
"""MuJoCo's headless backends, best first, and the names of the library each needs."""

DEVICE_VARIABLE = "MUJOCO_EGL_DEVICE_ID"
"""The environment variable that names the GPU to draw on."""


def settle_backend(
    environ: MutableMapping[str, str] = os.environ, load: Callable[[str], object] = ctypes.CDLL
) -> str:
    """Set ``MUJOCO_GL``, which MuJoCo and robosuite read once, when they are imported.

    It stays what it is if it is set. Else it becomes EGL, which needs no display and draws on a
    GPU or a CPU; OSMesa where there is no EGL library. Only on Linux; elsewhere MuJoCo chooses.

    Args:
        environ: The environment's variables.
        load: Loads a library of that name, or raises ``OSError``.
    """
    if sys.platform == "linux" and not environ.get("MUJOCO_GL"):
        found = (name for name in LIBRARIES if _has_library(name, load))
        environ["MUJOCO_GL"] = next(found, "egl")
    return environ.get("MUJOCO_GL", "")


def _has_library(backend: str, load: Callable[[str], object]) -> bool:
    """Whether the library of a backend can be loaded."""
    for name in LIBRARIES[backend]:
        try:
            load(name)
        except OSError:
            continue
        return True
    return False


def missing_library(
    environ: MutableMapping[str, str] = os.environ, load: Callable[[str], object] = ctypes.CDLL
) -> str | None:
    """What stands against the backend that is used, if its library is not here."""
    backend = settle_backend(environ, load).lower()
    if backend not in LIBRARIES or _has_library(backend, load):
        return None
    others = [name for name in LIBRARIES if _has_library(name, load)]
    way = f"export MUJOCO_GL={others[0]}" if others else "vlm-agent doctor says what to install"
    return f"MUJOCO_GL: cannot render with {backend}: there is no {LIBRARIES[backend][0]}; {way}"


def make_context(size: int) -> Any:
    """A current OpenGL context for pictures of that size.

    Not ``mujoco.GLContext``: that is chosen when MuJoCo is first imported, perhaps by other code
    on a machine without a display.
    """
    backend = settle_backend().lower()
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    context = GLContext(size, size)
    context.make_current()
    return context


def renderer_name() -> str:
    """What draws in the current context, in the driver's words: a GPU's name, or ``llvmpipe``."""
    from OpenGL import GL

    return GL.glGetString(GL.GL_RENDERER).decode()


def select_gpu(index: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Draw on the GPU with that index from now on, if EGL knows it and nobody chose another.

    To be called before anything is drawn in this process.

    Args:
        index: Of the GPU.
        environ: The environment's variables.
    """
    if settle_backend(environ).lower() != "egl" or DEVICE_VARIABLE in environ:
        return
    from mujoco.egl import egl_ext

    if index < len(egl_ext.eglQueryDevicesEXT()):
        environ[DEVICE_VARIABLE] = str(index)
