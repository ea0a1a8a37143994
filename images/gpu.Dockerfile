# Stages on a GPU, with vLLM: the engine of rollouts where rollout.engine is vllm, and a server of models, as in
#   docker run --gpus all ... vllm serve /models/versions/<id>/model
# As in images/cpu.Dockerfile the code is not in here; make images builds it.

# Debian with Python and nothing else, by full version, and by digest as in images/cpu.Dockerfile. CUDA's libraries come
# as pinned Python packages, with torch; the driver comes from the machine.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# The image named above.
FROM ${PYTHON_IMAGE}

# Triton compiles a launcher for each kernel, and torch.compile parts of a model: both call the machine's compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:12.2.0-* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*

# Stages run as a user without rights over the machine, who owns the folder that the code is unpacked in.
RUN useradd --create-home --uid 1000 steptool \
    && install --directory --owner steptool /home/steptool/code

# Every package, vLLM among them, by the digest of its file: pip refuses any other. make lock writes the list for this kind of machine.
WORKDIR /build
COPY images/gpu.hashes.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r gpu.hashes.txt

# Lines of the log appear when they are written. The container runtime mounts the parts of the driver that compute; which
# GPUs a container sees is left to the cluster.
ENV PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Registration unpacks the code in the working folder. The user by number, which lets a cluster see that it is not root.
WORKDIR /home/steptool/code
USER 1000
