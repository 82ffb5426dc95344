# Seedtune on a CPU, from the registries of Debian and Python alone:
#   docker build -t seedtune . && docker run --rm -v "$PWD/runs:/runs" seedtune demo --output_dir /runs/demo
# The embedded model is in the image; bubblewrap is for tasks that run code.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv bubblewrap && \
    rm -rf /var/lib/apt/lists/*
COPY . /seedtune
RUN python3 -m venv /venv && \
    /venv/bin/pip install --no-cache-dir --constraint /seedtune/constraints.txt torch==2.13.0 /seedtune && \
    SEEDTUNE_CACHE=/cache /venv/bin/python -c "from seedtune.engines.embedded import fetch; fetch()" && \
    rm -rf /seedtune
ENV PATH=/venv/bin:$PATH SEEDTUNE_CACHE=/cache
RUN useradd --create-home seedtune && chown -R seedtune /cache
USER seedtune
WORKDIR /home/seedtune
ENTRYPOINT ["seedtune"]
