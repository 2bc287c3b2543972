# The package with everything that its tests need. On a CPU, and for GPUs:
#   docker build --tag vlm-agent .
#   docker build --tag vlm-agent:cuda --target cuda .
#   docker run --rm --shm-size 2g vlm-agent make quick
#   docker run --rm --shm-size 8g --gpus all vlm-agent:cuda make full
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS base
# gcc: robosuite's evdev is built from source; the others draw without a display.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev make git libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 robot
USER 1000
WORKDIR /home/robot/vlm-agent
ENV PYTHON=python3 PIP_NO_CACHE_DIR=1

# The CUDA build of torch, which the other stage does without.
FROM base AS cuda
COPY --chown=1000 . .
RUN make install
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
CMD ["make", "full"]

FROM base AS cpu
COPY --chown=1000 . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make install
CMD ["make", "quick"]
