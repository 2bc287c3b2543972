"""Pictures as pages show them."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def jpeg(picture: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), as a JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
