"""A registry in etcd: cards under leases, changes by a watch, and a supervisor for both, which no client library has.

`access` says where the cluster is, `session` carries calls, `cards` keeps this process's cards there, `watch` follows those of all,
`registry` puts the two together. Needs the extra `etcd`: `pip install 'warmpath[etcd]'`.
"""
