# vsfmanet for CPUs (target cpu) or NVIDIA cards (target cuda), with all models.
#
#   docker build --target cpu --tag vsfmanet:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" vsfmanet:cpu restore film.mkv restored.mkv
#
#   docker build --target cuda --tag vsfmanet:cuda .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" vsfmanet:cuda restore film.mkv restored.mkv
#
# For pip, PyTorch on Linux is the one for CUDA, also in the target cpu. --build-arg TORCH_INDEX=URL takes the smaller one
# for CPUs, from the URL in the command that pytorch.org shows for it.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update && \
    apt-get install --yes --no-install-recommends g++ && \
    rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PATH=/opt/vsfmanet/bin:$PATH
RUN python -m venv /opt/vsfmanet
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.8"
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY models models
COPY vsfmanet vsfmanet
# With the kernels compiled for each set of instructions: the image needs no compiler.
RUN VSFMANET_PREBUILT=1 pip install .

FROM build AS build-cuda
RUN VSFMANET_PREBUILT=1 pip install ".[cuda]"

FROM python:${PYTHON}-slim AS plain
RUN useradd --create-home --uid 1000 vsfmanet && install --directory --owner vsfmanet /data
# Caches lie where any user can make them: --user may name one without a home.
ENV PATH=/opt/vsfmanet/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/tmp/cache CUPY_CACHE_DIR=/tmp/cache/cupy
WORKDIR /data
ENTRYPOINT ["vsfmanet"]
CMD ["--help"]

FROM plain AS cuda
COPY --from=build-cuda /opt/vsfmanet /opt/vsfmanet
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER vsfmanet

FROM plain AS cpu
COPY --from=build /opt/vsfmanet /opt/vsfmanet
USER vsfmanet
