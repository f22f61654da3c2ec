// kafkajs as a client of the compatibility suite; ../README.md says what it is
// asked and what it prints.
'use strict'
const crypto = require('crypto')
const readline = require('readline')
const { Kafka, CompressionTypes, CompressionCodecs, logLevel, ConfigResourceTypes } = require('kafkajs')

const emit = (event) => process.stdout.write(JSON.stringify(event) + '\n')

// kafkajs brings gzip alone; the others are plugged in, as its manual says.
CompressionCodecs[CompressionTypes.Snappy] = require('kafkajs-snappy')
CompressionCodecs[CompressionTypes.LZ4] = () => {
  const lz4 = require('lz4js')
  return {
    compress: async (encoder) => {
      const frame = Buffer.from(lz4.compress(encoder.buffer))
      // lz4js says that blocks depend on each other, which Kafka refuses. A
      // batch here is one block: say so, and mend the header's checksum.
      frame[4] = 0x60
      frame[6] = 0x73
      return frame
    },
    decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
  }
}
const zstd = require('@bokuweb/zstd-wasm')
const ready = zstd.init() // once: it would take the memory from under a call that is running
CompressionCodecs[CompressionTypes.ZSTD] = () => {
  return {
    compress: async (encoder) => { await ready; return Buffer.from(zstd.compress(encoder.buffer, 3)) },
    decompress: async (buffer) => { await ready; return Buffer.from(zstd.decompress(buffer)) },
  }
}
const codecs = {
  none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD,
}

const connect = (o) => new Kafka({
  clientId: 'compat', brokers: o.bootstrap.split(','), logLevel: logLevel.NOTHING, retry: { retries: 12, initialRetryTime: 50, maxRetryTime: 2000 },
})

function value(prefix, i, size) {
  const id = Buffer.from(`${prefix}-${i}.`)
  const b = Buffer.alloc(Math.max(size, id.length))
  id.copy(b)
  for (let j = id.length; j < b.length; j++) b[j] = 97 + j % 26
  return b
}

async function produce(o) {
  const idempotent = o.idempotent === 'true'
  const p = connect(o).producer({ idempotent, maxInFlightRequests: 1, allowAutoTopicCreation: false })
  const count = Number(o.count), size = Number(o.size || 0), rate = Number(o.rate || 0)
  // Slow producing sends ten at a time, fast producing fifty.
  const step = rate ? 10 : Math.min(50, Math.max(1, Math.floor(500000 / Math.max(size, 1))))
  await p.connect()
  try {
    for (let from = 0; from < count; from += step) {
      const messages = []
      for (let i = from; i < Math.min(from + step, count); i++) {
        const m = { key: 'k' + i % 10, value: value(o.prefix, i, size) }
        if (o.headers) m.headers = { name: 'k\u00e4se', twice: ['1', '2'], bin: Buffer.from([0x80, 0xff]) }
        messages.push(m)
      }
      const started = Date.now()
      await p.send({ topic: o.topic, acks: -1, compression: codecs[o.codec || 'none'], messages })
      // It tells each batch's first offset and not which records went where.
      for (let i = from; i < Math.min(from + step, count); i++) emit({ event: 'acked', value: `${o.prefix}-${i}`, partition: -1, offset: -1 })
      const rest = rate ? step * 1000 / rate - (Date.now() - started) : 0
      if (rest > 0) await new Promise((done) => setTimeout(done, rest))
    }
  } finally {
    await p.disconnect()
  }
}

function show(partition, m) {
  const headers = []
  for (const [k, v] of Object.entries(m.headers || {})) {
    for (const one of Array.isArray(v) ? v : [v]) headers.push([k, Buffer.from(one).toString('hex')])
  }
  emit({
    event: 'record', partition, offset: Number(m.offset), key: m.key ? m.key.toString() : '', headers,
    value: m.value.toString().split('.')[0], sum: crypto.createHash('sha256').update(m.value).digest('hex'),
  })
}

function consumer(o, groupId) {
  const c = connect(o).consumer({
    groupId, sessionTimeout: 6000, heartbeatInterval: 500, rebalanceTimeout: 10000, maxWaitTimeInMs: 300,
    maxBytesPerPartition: 8 << 20, maxBytes: 16 << 20, allowAutoTopicCreation: false,
  })
  c.on(c.events.GROUP_JOIN, (e) => emit({ event: 'assigned', partitions: (e.payload.memberAssignment[o.topic] || []).sort((a, b) => a - b) }))
  return c
}

// crashed tells of an error after which kafkajs starts anew by itself, and ends
// the feature at one after which it does not.
function crashed(e, fail) {
  if (!e.payload.restart) fail(e.payload.error)
  emit({ event: 'notice', error: String(e.payload.error) })
}

// kafkajs reads in groups only, so a group of its own stands for reading alone.
async function consume(o) {
  const c = consumer(o, `alone-${process.pid}-${Date.now()}`)
  await c.connect()
  await c.subscribe({ topics: [o.topic], fromBeginning: true })
  let left = Number(o.count)
  await new Promise((done, fail) => {
    c.on(c.events.CRASH, (e) => crashed(e, fail))
    if (left <= 0) done()
    c.run({
      autoCommit: false,
      eachMessage: async ({ partition, message }) => {
        show(partition, message)
        if (--left === 0) done()
      },
    }).catch(fail)
  }).finally(() => c.disconnect())
}

async function group(o) {
  const c = consumer(o, o.group)
  await c.connect()
  await c.subscribe({ topics: [o.topic], fromBeginning: true })
  await new Promise((done, fail) => {
    process.on('SIGTERM', done)
    c.on(c.events.CRASH, (e) => crashed(e, fail))
    c.run({
      eachBatchAutoResolve: true,
      autoCommit: false,
      eachBatch: async ({ batch, heartbeat }) => {
        for (const m of batch.messages) show(batch.partition, m)
        const next = Number(batch.lastOffset()) + 1
        await c.commitOffsets([{ topic: o.topic, partition: batch.partition, offset: String(next) }])
        emit({ event: 'committed' })
        await heartbeat()
      },
    }).catch(fail)
  }).finally(() => c.disconnect())
}

const admin = (call) => async (o) => {
  const a = connect(o).admin()
  await a.connect()
  try {
    await call(a, o)
  } finally {
    await a.disconnect()
  }
}
const resource = (o) => ({ type: ConfigResourceTypes.TOPIC, name: o.topic })

const features = {
  produce, consume, group,
  'create-topic': admin((a, o) => a.createTopics({
    waitForLeaders: true,
    topics: [{
      topic: o.topic, numPartitions: Number(o.partitions), replicationFactor: 3,
      configEntries: o.name ? [{ name: o.name, value: o.value }] : [],
    }],
  })),
  'describe-topic': admin(async (a, o) => {
    const { topics } = await a.fetchTopicMetadata({ topics: [o.topic] })
    emit({ event: 'result', partitions: topics[0].partitions.length, replicas: topics[0].partitions[0].replicas.length })
  }),
  'create-partitions': admin((a, o) => a.createPartitions({ topicPartitions: [{ topic: o.topic, count: Number(o.partitions) }] })),
  'describe-config': admin(async (a, o) => {
    const { resources } = await a.describeConfigs({ resources: [{ ...resource(o), configNames: [o.name] }] })
    emit({ event: 'result', value: resources[0].configEntries.find((e) => e.configName === o.name).configValue })
  }),
  'alter-config': admin((a, o) => a.alterConfigs({ resources: [{ ...resource(o), configEntries: [{ name: o.name, value: o.value }] }] })),
  'delete-records': admin(async (a, o) => {
    await a.fetchTopicOffsets(o.topic) // without this it knows no leader of the topic
    await a.deleteTopicRecords({ topic: o.topic, partitions: [{ partition: Number(o.partition), offset: o.offset }] })
  }),
  'list-groups': admin(async (a) => emit({ event: 'result', groups: (await a.listGroups()).groups.map((g) => g.groupId) })),
  'describe-group': admin(async (a, o) => emit({ event: 'result', members: (await a.describeGroups([o.group])).groups[0].members.length })),
  'delete-group': admin((a, o) => a.deleteGroups([o.group])),
  'delete-topic': admin((a, o) => a.deleteTopics({ topics: [o.topic] })),
}

async function run(args) {
  const o = Object.fromEntries(args.slice(1).map((a) => [a.slice(0, a.indexOf('=')), a.slice(a.indexOf('=') + 1)]))
  try {
    await features[args[0]](o)
    emit({ event: 'done' })
  } catch (e) {
    const cause = e.groups || e.errors ? JSON.stringify(e.groups || e.errors.map(String)) : ''
    emit({ event: 'error', error: `${e.name}: ${e.message} ${cause}`.trim() })
  }
}

async function main(args) {
  if (args[0] !== '-') {
    await run(args)
    process.exit(0)
  }
  for await (const line of readline.createInterface({ input: process.stdin })) await run(line.trim().split(' '))
  process.exit(0)
}
main(process.argv.slice(2))
