import os
import subprocess
import sys

import pytest

from vlm_agent.world.render import gl


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ({"libEGL.so.1", "libOSMesa.so.8"}, "egl"),
        ({"libOSMesa.so.6"}, "osmesa"),
        (set(), "egl"),
    ],
)
def test_the_backend_is_the_first_whose_library_is_there(present: set, chosen: str):
    environ: dict[str, str] = {}

    def load(name: str) -> None:
        if name not in present:
            raise OSError(name)

    assert gl.settle_backend(environ, load) == chosen == environ["MUJOCO_GL"]


def test_what_the_user_set_stays():
    environ = {"MUJOCO_GL": "glfw"}
    assert gl.settle_backend(environ) == environ["MUJOCO_GL"] == "glfw"


@pytest.mark.parametrize(
    ("index", "set_before", "after"), [(0, None, "0"), (99, None, None), (0, "7", "7")]
)
def test_a_gpu_is_chosen_if_egl_has_it_and_nobody_chose(index, set_before, after):
    environ = {} if set_before is None else {gl.DEVICE_VARIABLE: set_before}
    gl.select_gpu(index, environ)
    assert environ.get(gl.DEVICE_VARIABLE) == after


def test_mujoco_may_be_imported_first():
    """It then has chosen another backend for itself, which needs a display."""
    code = (
        "import os; os.environ.pop('MUJOCO_GL', None); import mujoco\n"
        "from vlm_agent.world.env import LanguageActionEnv\n"
        "env = LanguageActionEnv(task='Lift', frame_size=56)\n"
        "print(env.reset(seed=0)[0]['image'].std())\nenv.close()"
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert float(child.stdout.split()[-1]) > 10
