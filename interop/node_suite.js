// What npm's etcd3 does, against the endpoints in $ENDPOINTS; a CA in $CA makes it TLS, and `name:password` in $LOGIN
// says who does it: nobody, where there are no users yet, `root`, or one who may less.
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { Etcd3 } = require('etcd3');

const scheme = process.env.CA ? 'https' : 'http';
const anonymous = {
  hosts: process.env.ENDPOINTS.split(',').map((host) => `${scheme}://${host}`),
  ...(process.env.CA && { credentials: { rootCertificate: fs.readFileSync(process.env.CA) } }),
};
const login = (name, password) => ({ ...anonymous, auth: { username: name, password } });
const [name, password] = (process.env.LOGIN || '').split(':');
const options = name ? login(name, password) : anonymous;

const DENIED = /permission denied/;

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
};

// Who may what; where there is no root yet, there is one in between.
async function users(client) {
  await client.put('foo').value('baz!');
  const role = client.role('reader');
  await role.create();
  await role.grant({ permission: 'Read', range: client.range({ prefix: 'foo' }) });
  const user = client.user('someone');
  await user.create('secret');
  await user.addRole('reader');
  assert.equal((await user.roles()).length, 1);
  if (!name) {
    const root = client.user('root');
    await root.create('rootpw');
    await root.addRole('root');
    await client.auth.authEnable();
  }
  const admin = new Etcd3(login('root', 'rootpw'));
  const reader = new Etcd3(login('someone', 'secret'));
  const stranger = new Etcd3(login('someone', 'wrong'));
  const nobody = new Etcd3(anonymous);
  try {
    assert.equal(await reader.get('foo').string(), 'baz!');
    await assert.rejects(reader.put('foo').value('no').exec(), DENIED);
    await assert.rejects(stranger.get('foo').exec(), /invalid user ID or password/);
    await assert.rejects(nobody.get('foo').exec(), /user name is empty/);
    await admin.user('someone').removeRole('reader');
    await assert.rejects(reader.get('foo').exec(), DENIED);
    await assert.rejects(admin.user('root').delete(), /invalid auth management/);
  } finally {
    if (!name) await admin.auth.authDisable();
    [admin, reader, stranger, nobody].forEach((other) => other.close());
  }
  for (const other of name ? ['someone'] : ['someone', 'root']) await client.user(other).delete();
  await role.delete();
}

// What only root may.
async function maintenance(client) {
  await client.maintenance.defragment();
  assert.deepEqual((await client.maintenance.alarm({ action: 'Get' })).alarms, []);
  assert.notEqual((await client.maintenance.hash()).hash, 0);
  const { header } = await client.put('foo').value('kept');
  await client.kv.compact({ revision: header.revision, physical: true });
  await assert.rejects(client.get('foo').revision(1).exec(), /compacted/);
  let bytes = 0;
  const snapshot = await client.maintenance.snapshot();
  snapshot.on('data', (part) => (bytes += part.blob.length));
  const end = once(snapshot, 'end');
  // It sends no token where the answer is a stream.
  if (name) return assert.rejects(end, /user name is empty/);
  await end;
  assert.equal(bytes % 512, 32);
}

// What who is not root may not, and keys that are not for everybody.
async function refusals(client) {
  const refused = (call) => assert.rejects(call, DENIED);
  await refused(client.put('Secret').value('x').exec());
  await refused(client.get('Secret').exec());
  await refused(client.getAll().exec());
  await refused(client.delete().all().exec());
  await refused(client.if('Secret', 'Version', '==', 0).then(client.put('foo').value('x')).commit());
  await refused(client.if('foo', 'Version', '>', 0).else(client.get('Secret')).commit());
  await refused(client.watch().key('Secret').create());
  await refused(client.getUsers());
  await refused(client.getRoles());
  await refused(client.user('root').roles());
  await refused(client.user('few').addRole('root'));
  await refused(client.auth.authDisable());
  await refused(client.maintenance.defragment());
  await refused(client.cluster.memberAdd({ peerURLs: ['http://127.0.0.1:1'] }));
  assert.deepEqual((await client.user('few').roles()).map((role) => role.name), ['few']);
  assert.equal((await client.role('few').permissions()).length, 2);
}

const others = { few: { refusals }, root: { users, maintenance } }[name] || { users, maintenance };

(async () => {
  for (const [step, run] of Object.entries({ ...steps, ...others })) {
    const client = new Etcd3(options);
    await run(client);
    client.close();
    console.log(`interop: npm etcd3: ${step} ok`);
  }
  // A watch that was refused goes on trying, closed or not.
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
