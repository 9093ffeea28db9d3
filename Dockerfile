# syntax=docker/dockerfile:1
# docker build --target cpu -t overtone .        (or --target gpu)
#   --build-arg TORCH_INDEX=URL       another index for torch alone: PyTorch's own for the CPU has far smaller wheels
#   --build-arg TORCH=torch==2.13.0   another version of it
#   --build-arg EXTRAS=otel           extras of the package
# The Debian release and pyproject.toml already limit the versions of packages, so they are not pinned here. Steps that change
# independently are separate layers.
# hadolint global ignore=DL3008,DL3013,DL3059
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
# The compiler builds the kernels, and is part of their cache key: the running image needs the same one. Triton uses it, too.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/overtone/bin:$PATH \
    OVERTONE_CACHE_DIR=/var/cache/overtone \
    PYTHONUNBUFFERED=1

FROM base AS builder
ARG TORCH_INDEX=
ARG TORCH=torch~=2.13.0
ARG EXTRAS=
WORKDIR /src
RUN python -m venv /opt/overtone
# torch rarely changes and is most of the image, so it has its own layer before the code.
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY kernels ./kernels
COPY merge ./merge
COPY serve ./serve
RUN pip install --no-cache-dir ".${EXTRAS:+[${EXTRAS}]}"
RUN python -c 'from kernels.compiled.build import build; print(build())'

FROM builder AS builder-gpu
RUN pip install --no-cache-dir '.[gpu]'

FROM base AS runtime
RUN useradd --system --uid 10001 --create-home overtone \
    && install --directory --owner=overtone /var/cache/overtone
COPY --from=builder --chown=overtone /var/cache/overtone /var/cache/overtone
USER 10001
WORKDIR /home/overtone
EXPOSE 8000
ENV OVERTONE_HOST=0.0.0.0 \
    OVERTONE_PORT=8000
# /health answers 200 while the model loads, and /ready answers 200 when the server accepts requests. The demo downloads and
# merges its models before it opens the port.
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 \
    CMD ["overtone", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["overtone"]
CMD ["demo"]

FROM runtime AS gpu
# torch's wheels bring CUDA's libraries; the driver is the host's, mounted by the container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=builder-gpu /opt/overtone /opt/overtone

FROM runtime AS cpu
COPY --from=builder /opt/overtone /opt/overtone
