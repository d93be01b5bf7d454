# ratrain on CPUs, about 1.5 GB. From the top of a checkout:
#   docker build -f docker/cpu.Dockerfile -t ratrain .
#   docker run --rm -v "$PWD":/work ratrain v9 --scale tiny
FROM python:3.11.13-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11.13-slim-bookworm
# torch.compile needs a C++ compiler
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/ratrain/
RUN pip install --no-cache-dir -c /opt/ratrain/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch
COPY --from=wheel /wheel /opt/ratrain/wheel
RUN pip install --no-cache-dir -c /opt/ratrain/constraints.txt "$(echo /opt/ratrain/wheel/*.whl)[plots]"
RUN useradd --create-home ratrain && mkdir /work && chown ratrain /work
# names for torch's caches, also for a user of `docker run --user` who has no entry in /etc/passwd
ENV USER=ratrain XDG_CACHE_HOME=/tmp/cache
USER ratrain
WORKDIR /work
ENTRYPOINT ["ratrain"]
CMD ["list"]
