# docker build --build-arg VERSION=$(git describe --tags --always) -t lockstep .
FROM golang:1.26 AS build
WORKDIR /src
# The libraries change less often than the code, so they get a layer of their own.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=container
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/lockstep ./cmd/lockstep \
 && mkdir -p /out/data

# Nothing but the binary: it is static, needs no shell, and runs as a user of
# no name and no rights.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/lockstep /usr/local/bin/lockstep
# A volume on this directory starts with its owner.
COPY --from=build --chown=65532:65532 /out/data /var/lib/lockstep
ENV PATH=/usr/local/bin
USER 65532:65532
# Kafka clients, the other nodes, and the node's own HTTP server.
EXPOSE 9092 7400 7501
VOLUME /var/lib/lockstep
ENTRYPOINT ["lockstep"]
CMD ["serve", "--config", "/etc/lockstep/lockstep.yaml"]
