# CPU:  docker build -t palindrome .
# CUDA: docker build -t palindrome --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .
#
# Batches do not use /dev/shm. NCCL does on several GPUs, and Docker gives only 64 MB of it:
#   docker run --rm -it --gpus all --shm-size 16g -v "$PWD/data:/palindrome/data" \
#       -v "$PWD/runs:/palindrome/runs" palindrome python train/e2e.py --config …
# (without `--gpus all` for CPU).
ARG BASE=ubuntu:24.04
FROM ${BASE}

# The compiler and Python's headers are for training.compile.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /palindrome
# The packages first: they stay when only the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/packages.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/packages.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .
