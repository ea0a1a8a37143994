# Stages without a GPU. The image holds what the code needs, not the code: that travels with each registration
# (make register), so an image is built anew only when images/cpu.hashes.txt changes. make images builds it.

# Debian with Python and nothing else, by full version and digest: a tag may be moved to a rebuilt image, a digest not. An
# image of your own registry is named with make images PYTHON_IMAGE=...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# The image named above.
FROM ${PYTHON_IMAGE}

# Stages run as a user without rights over the machine, who owns the folder that the code is unpacked in.
RUN useradd --create-home --uid 1000 steptool \
    && install --directory --owner steptool /home/steptool/code

# An index that pip asks besides its own, without a token, since it stays in the image's history. The one of torch's
# builds for CPUs saves three gigabytes of CUDA libraries; run make lock with it first, as its files have other digests.
ARG PIP_EXTRA_INDEX_URL=""

# Every package by the digest of its file: pip refuses any other. make lock writes the list for this kind of machine.
WORKDIR /build
COPY images/cpu.hashes.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r cpu.hashes.txt

# Lines of the log appear when they are written: a pod that is killed takes nothing of them along.
ENV PYTHONUNBUFFERED=1

# Registration unpacks the code in the working folder. The user by number, which lets a cluster see that it is not root.
WORKDIR /home/steptool/code
USER 1000
