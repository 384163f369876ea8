# One rollout replica: vLLM on a CPU. From the repository's root:
#   docker build -f deploy/docker/rollout.Dockerfile -t baton-rollout .
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 baton && install -d -o baton -g baton /baton /baton/runs /baton/models

# vLLM's kernels are linked against libnuma, and torch compiles a part of its sampler with g++, `enforce_eager` or not
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 g++ \
 && rm -rf /var/lib/apt/lists/*

# The CPU build of torch has an index of its own; pip then takes it for the torch of the requirements.
COPY requirements/rollout.txt /src/requirements/
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
    "$(grep '^torch==' /src/requirements/rollout.txt)+cpu"
RUN pip install --no-cache-dir --no-deps -r /src/requirements/rollout.txt

COPY pyproject.toml /src/
COPY sdk /src/sdk
COPY services /src/services
RUN pip install --no-cache-dir --no-deps /src/sdk /src

# BATON_CACHE: where the built-in model is kept once it is converted; rollout and trainer share it
ENV PYTHONUNBUFFERED=1 BATON_CACHE=/baton/models
USER baton
WORKDIR /baton
