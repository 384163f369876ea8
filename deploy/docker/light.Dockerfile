# Buffer, coordinator and the `baton` command: everything that needs no torch. From the repository's root:
#   docker build -f deploy/docker/light.Dockerfile -t baton-light .
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 baton && install -d -o baton -g baton /baton /baton/runs

# pycosat, which reasoning-gym needs, comes as source only: the compiler is there for this one step
COPY requirements/light.txt /src/requirements/
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && pip install --no-cache-dir --no-deps -r /src/requirements/light.txt \
 && apt-get purge --yes --auto-remove gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml /src/
COPY sdk /src/sdk
COPY services /src/services
RUN pip install --no-cache-dir --no-deps /src/sdk /src

ENV PYTHONUNBUFFERED=1
USER baton
WORKDIR /baton
