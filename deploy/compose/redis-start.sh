#!/bin/sh
# Starts Redis with the users that redis-users.sh prints. The file of users is only in memory, because
# /tmp is a tmpfs.
set -eu
umask 077
sh /opt/music-genre/redis-users.sh /opt/music-genre/queues.toml >/tmp/users.acl
# Through the image's entrypoint Redis accepts connections from other containers; only those on the
# stack's networks can reach it. A queued task survives a crash (AOF) and is never evicted. When
# Redis has used --maxmemory, it refuses new tasks. Without --maxmemory it would exceed the container's
# memory limit and be killed.
exec docker-entrypoint.sh redis-server --aclfile /tmp/users.acl --appendonly yes --save '' \
    --maxmemory 384mb --maxmemory-policy noeviction --dir /data
