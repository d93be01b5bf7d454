# ratrain on NVIDIA GPUs, about 8 GB: torch brings CUDA, the host its driver and the NVIDIA Container Toolkit.
#   docker build -f docker/cuda.Dockerfile -t ratrain:cuda .
#   docker run --rm --gpus all --ipc host -v "$PWD":/work ratrain:cuda v9
FROM python:3.11.13-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11.13-slim-bookworm
# torch.compile and Triton need a compiler
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/ratrain/
RUN pip install --no-cache-dir -c /opt/ratrain/constraints.txt torch
COPY --from=wheel /wheel /opt/ratrain/wheel
RUN pip install --no-cache-dir -c /opt/ratrain/constraints.txt "$(echo /opt/ratrain/wheel/*.whl)[plots,nvml]"
RUN useradd --create-home ratrain && mkdir /work && chown ratrain /work
# names for torch's caches, also for a user of `docker run --user` who has no entry in /etc/passwd
ENV USER=ratrain XDG_CACHE_HOME=/tmp/cache NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ratrain
WORKDIR /work
ENTRYPOINT ["ratrain"]
CMD ["list"]
