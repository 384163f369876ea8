# The trainer: Megatron-Core on CPUs, under torchrun. From the repository's root:
#   docker build -f deploy/docker/trainer.Dockerfile -t baton-trainer .
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 baton && install -d -o baton -g baton /baton /baton/runs /baton/models

# The CPU build of torch has an index of its own; pip then takes it for the torch of the requirements.
COPY requirements/trainer.txt /src/requirements/
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
    "$(grep '^torch==' /src/requirements/trainer.txt)+cpu"
RUN pip install --no-cache-dir --no-deps -r /src/requirements/trainer.txt

COPY pyproject.toml /src/
COPY sdk /src/sdk
COPY services /src/services
RUN pip install --no-cache-dir --no-deps /src/sdk /src

# BATON_CACHE: where the built-in model is kept once it is converted; rollout and trainer share it
ENV PYTHONUNBUFFERED=1 BATON_CACHE=/baton/models
USER baton
WORKDIR /baton
