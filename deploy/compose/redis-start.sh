#!/bin/sh
# Starts Redis with the users that redis-users.sh prints. They are written to memory only (/tmp is a
# tmpfs).
set -eu
umask 077
sh /opt/music-genre/redis-users.sh /opt/music-genre/queues.toml >/tmp/users.acl
# The image's entrypoint makes Redis listen beyond loopback; only the stack's networks reach it.
# A queued task survives a crash (AOF) and is never evicted. When full, Redis refuses new tasks;
# otherwise it would exceed the container's memory limit and be killed.
exec docker-entrypoint.sh redis-server --aclfile /tmp/users.acl --appendonly yes --save '' \
    --maxmemory 384mb --maxmemory-policy noeviction --dir /data
