"""What PyPI's etcd3 does, against the first endpoint in $ENDPOINTS; a CA in $CA makes it TLS."""

import os
import queue

import etcd3

DEADLINE_SECONDS = 30

host, port = os.environ["ENDPOINTS"].split(",")[0].rsplit(":", 1)
client = etcd3.client(host=host, port=int(port), ca_cert=os.environ.get("CA"), timeout=DEADLINE_SECONDS)


def keys():
    client.put("k", "v")
    value, meta = client.get("k")
    assert value == b"v" and meta.version >= 1
    assert client.replace("k", "v", "w") and not client.replace("k", "v", "x")
    assert client.put_if_not_exists("k", "x") is False
    client.put("k2", "v")
    assert [meta.key for _, meta in client.get_prefix("k", sort_order="descend")] == [b"k2", b"k"]
    assert client.delete("k") and not client.delete("k")
    client.delete_prefix("k")


def leases():
    lease = client.lease(30)
    client.put("leased", "v", lease)
    assert list(lease.keys) == [b"leased"]
    lease.refresh()
    assert 0 < lease.remaining_ttl <= 30
    lease.revoke()
    assert client.get("leased")[0] is None


def watches():
    seen = queue.Queue()
    watch_id = client.add_watch_prefix_callback("w/", lambda response: [seen.put(e) for e in response.events])
    client.put("w/1", "a")
    client.delete("w/1")
    put = seen.get(timeout=DEADLINE_SECONDS)
    delete = seen.get(timeout=DEADLINE_SECONDS)
    assert put.value == b"a" and isinstance(delete, etcd3.events.DeleteEvent)
    client.cancel_watch(watch_id)


def locks():
    with client.lock("lock", ttl=30) as lock:
        assert lock.is_acquired()
    assert not lock.is_acquired()


def transactions():
    tx = client.transactions
    client.put("t", "1")
    compare = [tx.value("t") == "1", tx.version("t") > 0, tx.create("absent") == 0]
    done, _ = client.transaction(compare=compare, success=[tx.put("t", "2"), tx.get("t")], failure=[])
    assert done
    done, [[(value, _)]] = client.transaction(compare=[tx.value("t") == "1"], success=[], failure=[tx.get("t")])
    assert not done and value == b"2"


def maintenance():
    status = client.status()
    assert status.leader is not None and status.version
    assert len(list(client.members)) == len(os.environ["ENDPOINTS"].split(","))
    client.defragment()
    assert client.hash() != 0
    assert list(client.list_alarms()) == []


for step in (keys, leases, watches, locks, transactions, maintenance):
    step()
    print(f"interop: PyPI etcd3: {step.__name__} ok", flush=True)
