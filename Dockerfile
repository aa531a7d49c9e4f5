# SPDX-License-Identifier: Apache-2.0
#
# Builds the package in one stage and runs it, as a user without privileges, in
# another that has no compiler. io_uring and locked memory need the host's consent:
#
#   docker build -t ingestd .
#   docker run --rm \
#     --device /dev/nvme1n1 --group-add "$(stat -c %g /dev/nvme1n1)" \
#     --ulimit memlock=-1 --ulimit nofile=65536 \
#     --security-opt seccomp=seccomp.json \
#     --network host \
#     -v ./ingestd.toml:/etc/ingestd/ingestd.toml:ro ingestd
#
# --device     the store; the group owns the device node on the host
# --ulimit     the area is locked memory; one descriptor per flow
# --security-opt  the default seccomp profile of Docker since 25.0 and of Podman
#              forbids io_uring: take that profile and add io_uring_setup,
#              io_uring_enter and io_uring_register to its allowed calls
# --network host  or publish the ports of the listeners; a proxy in user space
#              would copy each byte

FROM debian:12-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      liburing-dev libisal-dev pkg-config gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /usr/local/lib/ingestd
WORKDIR /usr/src/ingestd
COPY LICENSE README.md pyproject.toml meson.build ./
COPY ingestd ingestd
COPY config config
COPY systemd systemd
RUN /usr/local/lib/ingestd/bin/pip install --no-cache-dir .

FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends liburing2 libisal2 python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --user-group --home-dir /var/lib/ingestd --create-home ingestd
COPY --from=build /usr/local/lib/ingestd /usr/local/lib/ingestd
RUN ln -s /usr/local/lib/ingestd/bin/ingestd /usr/local/bin/ingestd
COPY config/ingestd.toml /etc/ingestd/ingestd.toml
USER ingestd
VOLUME /var/lib/ingestd
EXPOSE 7070 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["ingestd"]
CMD ["serve", "-c", "/etc/ingestd/ingestd.toml"]
