# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target cpu  --build-arg TORCH_INDEX=URL --build-arg TORCH_SHA256=… -t atlas-dist:0.1.0-cpu  .
#   docker build --target cuda -t atlas-dist:0.1.0-cuda .
# PyPI's torch for Linux brings CUDA with it, so the CUDA image needs no CUDA base: the node's driver and container runtime do the
# rest. CUDA 13 needs driver 580 or newer; a run looks at every node before it starts. TORCH_INDEX names an index with CPU builds of
# torch (PyTorch publishes one); without it the cpu image is as large as the other. Neither has the `demo` extra: a cluster starts
# `experiment=toy`. The cpu image has no C compiler: train.compile is refused there.
# The base is pinned by the digest of its multi-platform index, as many public projects pin that tag (it could not be pulled where this
# was written); a wrong digest fails the build, it never builds something else.
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# ---- what both images install: every package at one version and with a known sha256 (cluster/image, made by `make lock`)
FROM ${BASE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_COMPILE=0
RUN python3 -m venv /opt/atlas
ENV PATH=/opt/atlas/bin:$PATH
WORKDIR /src
COPY cluster/image/requirements-build.txt cluster/image/requirements-cuda.txt cluster/image/requirements.txt cluster/image/trim.py \
    cluster/image/
RUN pip install --no-cache-dir --require-hashes --no-deps -r cluster/image/requirements-build.txt

# trim.py removes what no run reads: tests, headers, Java, and in the cpu image (which has strip, of binutils, while it is built) the
# tables of torch's, Ray's and Arrow's libraries for debuggers.
# compileall: COPY rounds modification times, so bytecode that is checked by them counts as stale, and on a read-only root every
# process compiles hundreds of modules anew at its start. `unchecked-hash` is believed as it is; pip compiles nothing before it.
# (A few packages ship files for other Pythons, which cannot be compiled: nothing imports them.)
FROM builder AS cpu-packages
# The sha256 of a CPU build of torch is its index's to tell (it was not at hand where this was written): give it as TORCH_SHA256, and that
# wheel is installed or none. Left out, this one package is pinned by its version alone.
ARG TORCH_INDEX=""
ARG TORCH_SHA256=""
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
RUN if [ -n "${TORCH_INDEX}" ]; then \
        echo "torch==2.13.0 ${TORCH_SHA256:+--hash=sha256:${TORCH_SHA256}}" > torch.txt && \
        PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir --only-binary :all: --no-deps -r torch.txt; \
    else \
        pip install --no-cache-dir --require-hashes --no-deps -r cluster/image/requirements-cuda.txt; \
    fi
RUN pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation -r cluster/image/requirements.txt && \
    python cluster/image/trim.py
COPY pyproject.toml README.md LICENSE ./
COPY atlas_dist atlas_dist
COPY configs configs
COPY cluster/kuberay/job cluster/kuberay/job
COPY cluster/kuberay/components cluster/kuberay/components
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check && \
    { python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/atlas/lib || true; }

FROM builder AS cuda-packages
RUN pip install --no-cache-dir --require-hashes --no-deps -r cluster/image/requirements-cuda.txt && \
    pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation -r cluster/image/requirements.txt && \
    python cluster/image/trim.py
COPY pyproject.toml README.md LICENSE ./
COPY atlas_dist atlas_dist
COPY configs configs
COPY cluster/kuberay/job cluster/kuberay/job
COPY cluster/kuberay/components cluster/kuberay/components
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check && \
    { python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/atlas/lib || true; }

# ---- what both images are
FROM ${BASE} AS runtime
# Python's official image ships its library without bytecode. A login shell (KubeRay's ENABLE_LOGIN_SHELL) takes its PATH from
# /etc/profile, which knows nothing of /opt/atlas.
RUN groupadd --gid 1000 atlas && useradd --uid 1000 --gid atlas --create-home atlas && \
    library="$(python3 -c 'import os; print(os.path.dirname(os.__file__))')" && \
    { python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "${library}" || true; } && \
    echo "PATH=/opt/atlas/bin:\$PATH" > /etc/profile.d/atlas.sh
ENV PATH=/opt/atlas/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/atlas
USER 1000:1000
CMD ["atlas-dist", "--help"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/atlas /opt/atlas

# Triton, which train.compile uses on GPUs, builds a small C file for each kernel.
FROM runtime AS cuda
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 1000:1000
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-packages /opt/atlas /opt/atlas
