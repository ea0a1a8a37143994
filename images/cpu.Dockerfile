# Tasks on machines without a GPU. Build it from the repository's root:
#   docker build -f images/cpu.Dockerfile -t steptool:0.1.0 .
FROM python:3.11-slim

WORKDIR /app
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1

# TORCH may name a smaller build for CPUs: --build-arg TORCH="torch==2.13.0 --index-url ..."
ARG TORCH="torch==2.13.0"
RUN pip install --no-cache-dir ${TORCH}

# The dependencies come before the code, so that a change of code leaves their layer alone.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir steptool && touch steptool/__init__.py && pip install --no-cache-dir -c constraints.txt . && rm -r steptool

COPY steptool steptool
COPY tasks tasks
COPY workflows workflows
RUN pip install --no-cache-dir --no-deps .
