# Two images, neither built by CI:
#   docker build --target cpu  -t seta:cpu .
#   docker build --target cuda -t seta:cuda .
#   docker run --shm-size 1g -p 8000:8000 -e SETA_API_KEYS='alice sha256:...' -v /path/to/model:/model:ro -v /path/to/bank:/bank:ro seta:cpu
# Clients need a key: `seta keys new alice` prints one and what to put into SETA_API_KEYS (docs/security.md).
# The bank's directory must be readable by user 10001, and writable to activate another generation. Give a CUDA container
# its GPUs: --gpus all --ipc=host. deploy/compose.yml and deploy/kubernetes run these images; docs/deployment.md tells how.

FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home seta
WORKDIR /src

FROM base AS cpu-install
# As deploy/bootstrap.py does: a full lock, nothing resolved; torch's CPU build has an index of its own.
COPY requirements/cpu.lock requirements/
RUN grep -E '^torch==' requirements/cpu.lock > requirements/torch.lock \
 && pip install --no-deps --index-url https://download.pytorch.org/whl/cpu -r requirements/torch.lock \
 && pip install --no-deps -r requirements/cpu.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM base AS cuda-install
COPY . .
# The one version that counts, vLLM's, is pinned in pyproject.toml.
# hadolint ignore=DL3013
RUN pip install '.[cuda]'

FROM base AS cpu
# Debian keeps only the newest version of a package, so a pinned one is gone with the next security update.
# The compiler: the experts' product is compiled on the processor it runs on.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-install /usr/local /usr/local
USER 10001
WORKDIR /home/seta
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "server.cli", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "/model", "--bank", "/bank", "--name", "seta"]

FROM base AS cuda
# Triton compiles its kernels' launchers on first use.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=cuda-install /usr/local /usr/local
USER 10001
WORKDIR /home/seta
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "server.cli", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "/model", "--bank", "/bank", "--name", "seta"]
