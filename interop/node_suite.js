// What npm's etcd3 does, against the endpoints in $ENDPOINTS; a CA in $CA makes it TLS.
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { Etcd3 } = require('etcd3');

const scheme = process.env.CA ? 'https' : 'http';
const options = {
  hosts: process.env.ENDPOINTS.split(',').map((host) => `${scheme}://${host}`),
  ...(process.env.CA && { credentials: { rootCertificate: fs.readFileSync(process.env.CA) } }),
};

async function eventually(what, holds) {
  for (let tries = 0; !holds(); tries += 1) {
    assert(tries < 300, `not in time: ${what}`);
    await sleep(100);
  }
}

const steps = {
  async keys(client) {
    await client.put('foo').value('bar');
    assert.equal(await client.get('foo').string(), 'bar');
    assert.deepEqual(await client.getAll().prefix('f').strings(), { foo: 'bar' });
    assert.equal(await client.getAll().prefix('f').count(), 1);
  },
  async watch(client) {
    const seen = [];
    const watcher = await client.watch().prefix('w/').create();
    watcher.on('put', (kv) => seen.push(kv.value.toString()));
    watcher.on('delete', () => seen.push('gone'));
    await client.put('w/1').value('a');
    await client.delete().key('w/1');
    await eventually('two events', () => seen.length === 2);
    assert.deepEqual(seen, ['a', 'gone']);
    await watcher.cancel();
  },
  async lease(client) {
    const lease = client.lease(30);
    await lease.put('l/1').value('x');
    await lease.keepaliveOnce();
    await lease.revoke();
    assert.equal(await client.get('l/1').string(), null);
  },
  async lock(client) {
    const lock = client.lock('lock');
    await lock.acquire();
    await assert.rejects(client.lock('lock').acquire());
    await lock.release();
    await client.lock('lock').do(async () => {});
  },
  async transaction(client) {
    const change = (to) => client.if('foo', 'Value', '==', 'bar').then(client.put('foo').value(to));
    assert.equal((await change('baz').commit()).succeeded, true);
    assert.equal((await change('no').commit()).succeeded, false);
    await client.stm().transact(async (tx) => {
      await tx.put('foo').value(`${await tx.get('foo').string()}!`);
    });
    assert.equal(await client.get('foo').string(), 'baz!');
  },
  async namespace(client) {
    await client.namespace('ns/').put('a').value('1');
    assert.equal(await client.get('ns/a').string(), '1');
  },
  async election(client) {
    const election = client.election('election');
    const campaign = election.campaign('me');
    await once(campaign, 'elected');
    const observer = await election.observe();
    if (observer.leader() !== 'me') await once(observer, 'change');
    assert.equal(observer.leader(), 'me');
    await observer.cancel();
    await campaign.resign();
  },
  async cluster(client) {
    assert.equal((await client.cluster.memberList({})).members.length, options.hosts.length);
    const status = await client.maintenance.status();
    assert.notEqual(status.leader, '0');
  },
  async users(client) {
    const role = client.role('reader');
    await role.create();
    await role.grant({ permission: 'Read', range: client.range({ prefix: 'foo' }) });
    const user = client.user('someone');
    await user.create('secret');
    await user.addRole('reader');
    assert.equal((await user.roles()).length, 1);
    const root = client.user('root');
    await root.create('rootpw');
    await root.addRole('root');
    await client.auth.authEnable();
    const as = (username, password) => new Etcd3({ ...options, auth: { username, password } });
    const admin = as('root', 'rootpw');
    const reader = as('someone', 'secret');
    const stranger = as('someone', 'wrong');
    try {
      assert.equal(await reader.get('foo').string(), 'baz!');
      await assert.rejects(reader.put('foo').value('no').exec());
      await assert.rejects(stranger.get('foo').exec());
      await assert.rejects(client.get('foo').exec());
    } finally {
      await admin.auth.authDisable();
      [admin, reader, stranger].forEach((other) => other.close());
    }
    for (const name of ['someone', 'root']) await client.user(name).delete();
    await role.delete();
  },
};

(async () => {
  for (const [name, step] of Object.entries(steps)) {
    const client = new Etcd3(options);
    await step(client);
    client.close();
    console.log(`interop: npm etcd3: ${name} ok`);
  }
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
