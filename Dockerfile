# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target cpu  --build-arg TORCH_INDEX=URL -t atlas-dist:0.1.0-cpu  .
#   docker build --target cuda                             -t atlas-dist:0.1.0-cuda .
# PyPI's torch for Linux brings CUDA with it, so the CUDA image needs no CUDA base: the node's driver and container runtime do the
# rest. TORCH_INDEX names an index with CPU builds of torch (PyTorch publishes one); without it the cpu image is as large as the other.
# The base is pinned by the digest of its multi-platform index, as many public projects pin that tag (it could not be pulled where this
# was written); a wrong digest fails the build, it never builds something else.
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# ---- what both images install, except torch
FROM ${BASE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/atlas
ENV PATH=/opt/atlas/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools==84.2.1

FROM builder AS cpu-packages
ARG TORCH_INDEX=""
RUN PIP_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY atlas_dist atlas_dist
COPY configs configs
RUN pip install --no-cache-dir --no-build-isolation -c constraints.txt ".[cluster]"

FROM builder AS cuda-packages
RUN pip install --no-cache-dir -c constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY atlas_dist atlas_dist
COPY configs configs
RUN pip install --no-cache-dir --no-build-isolation -c constraints.txt ".[cluster]"

# ---- what both images are
FROM ${BASE} AS runtime
RUN groupadd --gid 1000 atlas && useradd --uid 1000 --gid atlas --create-home atlas
ENV PATH=/opt/atlas/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/atlas
USER 1000:1000
CMD ["atlas-dist", "--help"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/atlas /opt/atlas

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-packages /opt/atlas /opt/atlas
