import CLinux
import CMachnetABI
import Glibc
public import Logging
public import MachnetEngine

/// The daemon's control plane: one thread that serves the control socket and gives the engines their orders.
///
/// Never waits for a client: a client that does not read its replies is disconnected. Waits for engines, for a bounded
/// time. Everything but `stop` belongs to the thread that calls `run`.
public final class ControlServer: @unchecked Sendable {
  var config: Config
  let directory: DirectoryMemory
  let engines: [EngineControl]
  let log: Logger
  /// Reads the config again.
  let reread: @Sendable () throws -> Config
  let started = mn_linux_monotonic()

  var connections: [UInt64: Connection] = [:]
  var channels: [UInt32: Channel] = [:]
  var endpointsByCookie: [UInt64: Endpoint] = [:]
  var netns: NetworkNamespaces
  var counters = ControlCounters()
  var unclaimed = Unclaimed()
  /// Endpoints that their processes have closed and read on, by the socket's cookie.
  var kept: [UInt64: Endpoint] = [:]
  /// What engines are still letting go of.
  var departing: [Departure] = []
  var endpointCount = 0
  /// Of each user.
  var endpointsOfUser: [UInt32: Int] = [:]
  /// Ticks until the sockets of the endpoints are looked for again, and room for their cookies.
  var ticksToOrphans = 0
  var cookies: [UInt64] = []
  /// One at a time.
  var capture: ActiveCapture?
  let statusWriter: StatusWriter
  /// Who gets the report that is being written; nil: none is. And who came since, and gets the next.
  var statusReaders: [StatusRequest]?
  var statusWaiters: [StatusRequest] = []
  var generation: UInt32 = 0
  /// One per engine.
  var pulses: [EnginePulse]

  private var nextConnection = Name.firstConnection
  private var nextChannel: UInt32 = 1
  private let epoll: Descriptor
  private let stopping: Descriptor
  private let signals: Descriptor?
  private let socket: ControlSocket
  private let listener: Descriptor
  /// Closed for a moment when descriptors run out, so that a connection can be taken and dropped.
  private var reserve: Descriptor?

  /// Names of descriptors in the epoll set.
  private enum Name {
    static let listener: UInt64 = 0
    static let stop: UInt64 = 1
    static let signals: UInt64 = 2
    static let statusWritten: UInt64 = 3
    static let firstEngine: UInt64 = 16
    static let firstConnection: UInt64 = 1024
  }

  /// - Parameters:
  ///   - socket: the claim on the path; clients can connect from now on, and are served by `run`.
  ///   - engines: as many as the config says, by index.
  ///   - signals: of `blockSignals`: SIGHUP reloads, SIGTERM and SIGINT stop; -1: none. Closed at the end.
  ///   - render: makes text of a status, on another thread.
  public init(
    config: Config, socket: ControlSocket, directory: DirectoryMemory, engines: [EngineControl], log: Logger,
    signals: Int32 = -1, render: @escaping @Sendable (StatusReport) throws -> String = { $0.json },
    reread: @escaping @Sendable () throws -> Config
  ) throws(SystemError) {
    precondition(engines.count == config.engine.count)
    self.config = config
    self.directory = directory
    self.engines = engines
    pulses = Array(repeating: EnginePulse(), count: engines.count)
    self.log = log
    self.reread = reread
    var cookie: UInt64 = 0
    try unsafe check(mnc_own_netns_cookie(&cookie), "ask for the network namespace's cookie (needs Linux 5.14 or later)")
    netns = NetworkNamespaces(own: cookie)
    epoll = try Descriptor(mn_linux_epoll_create(), "make an epoll set")
    stopping = try Descriptor(mn_linux_eventfd(), "make an eventfd")
    statusWriter = try StatusWriter(render: render)
    self.signals = signals >= 0 ? try Descriptor(signals, "watch signals") : nil
    reserve = try? Descriptor(mn_linux_eventfd(), "make an eventfd")
    self.socket = socket
    listener = try socket.listen()
    try watch(listener.number, Name.listener)
    try watch(stopping.number, Name.stop)
    if signals >= 0 { try watch(signals, Name.signals) }
    try watch(statusWriter.written.number, Name.statusWritten)
    for (index, engine) in engines.enumerated() {
      try watch(engine.faultDescriptor, Name.firstEngine + UInt64(index))
    }
  }

  /// Diverts SIGHUP, SIGTERM and SIGINT from this thread, and from those it makes later, to a descriptor.
  public static func blockSignals() throws(SystemError) -> Int32 {
    try check(mnc_signal_descriptor(), "make a signalfd")
  }

  private func watch(_ descriptor: Int32, _ name: UInt64) throws(SystemError) {
    try check(mnc_epoll_watch(epoll.number, descriptor, name), "watch a descriptor")
  }

  /// Ends `run`. Any thread may call.
  public func stop() { mn_linux_eventfd_signal(stopping.number) }

  /// Serves until `stop` or a signal, then takes the socket away and lets every application know.
  ///
  /// - Throws: `StalledEngine`, whose thread will not end.
  public func run() throws {
    defer {
      directory.markStopping()
      socket.remove()
      for connection in connections.keys.sorted() { disconnect(connection) }
      // Engines still send what was queued. One that stands still is not waited for long.
      let limit = mn_linux_monotonic() + 1_000_000_000
      while !departing.isEmpty && mn_linux_monotonic() < limit {
        finishDepartures()
        mn_linux_sleep(100_000)
      }
    }
    var names = [UInt64](repeating: 0, count: 64)
    var nextTick = mn_linux_monotonic()
    while true {
      let now = mn_linux_monotonic()
      if now >= nextTick {
        directory.refreshHostAddresses()
        closeOrphans()
        forgetUnclaimed()
        try feelPulses()
        nextTick = now + 1_000_000_000
      }
      finishDepartures()
      let wait = departing.isEmpty ? Int32((nextTick - now) / 1_000_000 + 1) : 1
      let count = try unsafe check(mnc_epoll_wait(epoll.number, &names, Int32(names.count), wait), "wait for events")
      for name in names.prefix(Int(count)) {
        switch name {
        case Name.listener: acceptConnection()
        case Name.stop: return
        case Name.signals: if takeSignals() { return }
        case Name.statusWritten: finishStatus()
        case Name.firstEngine..<Name.firstConnection: takeFaults(engines[Int(name - Name.firstEngine)])
        default: serve(name)
        }
      }
    }
  }

  /// Programs whose engine hangs would wait for ever, because the daemon lives and answers. Better none than such a one: they go
  /// on by the kernel. Called once a second.
  private func feelPulses() throws(StalledEngine) {
    for (index, engine) in engines.enumerated() {
      let limit = config.engine.stallSeconds
      switch pulses[index].feel(rounds: engine.counters()[.iterations], limit: limit) {
      case .fine: break
      case .quiet: engine.prod()
      case .gone: throw StalledEngine(index: index, seconds: limit)
      }
    }
  }

  private func takeSignals() -> Bool {
    guard let signals else { return false }
    while true {
      switch mnc_next_signal(signals.number) {
      case SIGHUP: _ = try? reload()
      case let signal where signal > 0:
        log.info("stopping on signal \(signal)")
        return true
      default: return false
      }
    }
  }

  // MARK: Connections

  private func acceptConnection() {
    var peer = mnc_peer()
    let number = unsafe mnc_accept(listener.number, &peer)
    if number == -EMFILE || number == -ENFILE {
      counters.refusedConnections += 1
      if isWorthALine(counters.refusedConnections) {
        log.warning("out of file descriptors: a connection is refused; raise the daemon's RLIMIT_NOFILE")
      }
      reserve = nil
      let dropped = unsafe mnc_accept(listener.number, &peer)
      if dropped >= 0 { mn_linux_close(dropped) }
      reserve = try? Descriptor(mn_linux_eventfd(), "make an eventfd")
    }
    guard let descriptor = try? Descriptor(number, of: peer.uid, "accept a connection") else { return }
    let ofUser = peer.uid == 0 ? 0 : connections.values.count { $0.uid == peer.uid } + SlowClose.shared.underWay(of: peer.uid)
    guard connections.count < config.limits.connections, ofUser < config.limits.connectionsPerUser else {
      counters.refusedConnections += 1
      if isWorthALine(counters.refusedConnections) {
        log.warning("a connection of pid \(peer.pid) is refused: \(connections.count) are open, \(ofUser) of its user")
      }
      return
    }
    let name = nextConnection
    guard mnc_epoll_watch(epoll.number, descriptor.number, name) == 0 else { return }
    nextConnection += 1
    var isOperator = isTrusted(peer.uid)
    if !isOperator, let group = socket.operators { isOperator = unsafe mnc_peer_is_in_group(descriptor.number, &peer, group) }
    connections[name] = Connection(descriptor: descriptor, pid: peer.pid, uid: peer.uid, isOperator: isOperator)
    counters.connections += 1
  }

  /// Ends a connection and everything that lives by it.
  func disconnect(_ name: UInt64) {
    guard let connection = connections.removeValue(forKey: name) else { return }
    endCapture(of: name)
    for endpoint in kept.values
    where endpoint.keeper == name && !connection.channels.contains(endpoint.reference.channel) && !isJoined(endpoint, except: name) {
      close(endpoint, keeping: false)
    }
    for identifier in connection.channels {
      guard let channel = channels[identifier] else { continue }
      if channel.holders == [name] { remove(identifier) } else { leave(channel, connection, name) }
    }
    log.debug("pid \(connection.pid) (\(connection.program)) is gone")
  }

  /// Takes one message, so that every client has its turn.
  private func serve(_ name: UInt64) {
    guard let connection = connections[name] else { return }
    guard let message = Message(from: connection) else { return }
    guard message.length > 0 else { return disconnect(name) }
    counters.requests += 1
    var reply = mn_reply()
    reply.magic = MN_MAGIC
    reply.version = UInt16(MN_ABI_VERSION)
    var descriptors: [Descriptor] = []
    var isLie = false
    do throws(Refusal) {
      let request = try message.request()
      reply.kind = request.kind
      reply.sequence = request.sequence
      descriptors = try answer(request, message, connection, name, &reply)
    } catch {
      reply.status = error.code
      connection.note(error, Int(reply.kind), message.descriptors.first)
      isLie = error.isLie
      if let text = error.message, let memory = try? textMemory(text) {
        reply.size = UInt64(text.utf8.count)
        descriptors = [memory]
      }
      if !isOrdinary(error, Int(reply.kind)) { counters.refusedRequests += 1 }
      log.debug("request \(reply.kind) of pid \(connection.pid) is refused with errno \(error.code)")
    }
    // Nobody waits for an answer to a close; and a status takes its time.
    let isSilent = switch Int(reply.kind) {
    case MN_REQUEST_CLOSE: !isLie
    case MN_REQUEST_STATUS: reply.status == 0
    default: false
    }
    if isSilent { return }
    let sent = send(&reply, descriptors, to: connection)
    if isLie {
      counters.lies += 1
      if isWorthALine(counters.lies) {
        log.warning("pid \(connection.pid) (\(connection.program)) sent what no client sends; it is disconnected")
      }
    }
    if isLie || !sent { disconnect(name) }
  }

  /// - Returns: false: the client does not read its replies, or has gone.
  func send(_ reply: inout mn_reply, _ descriptors: [Descriptor], to connection: Connection) -> Bool {
    reply.fd_count = UInt16(descriptors.count)
    let sent = unsafe withUnsafeBytes(of: reply) { bytes in
      unsafe mnc_send(
        connection.descriptor.number, bytes.baseAddress!, bytes.count, descriptors.map(\.number),
        Int32(descriptors.count))
    }
    return sent >= 0
  }

  // MARK: Channels

  /// - Throws: EMFILE (this process has its share), ENOMEM and the like.
  func makeChannel(for connection: Connection, _ name: UInt64) throws(Refusal) -> Channel {
    let ofProcess =
      connection.pid == 0
      ? connection.channels.count
      : connections.values.reduce(0) { $0 + ($1.pid == connection.pid ? $1.channels.count : 0) }
    let ofUser = isTrusted(connection.uid) ? 0 : channels.values.count { $0.uid == connection.uid }
    guard ofProcess < config.channel.maximumPerProcess, ofUser < max(1, EngineControl.channelsMax - channels.count)
    else { throw Refusal(EMFILE) }
    let channel: Channel
    do throws(SystemError) {
      channel = try Channel(
        identifier: nextChannel, owner: name, uid: connection.uid, processNamespace: processNamespace(connection.pid), shape: Channel.Shape(config),
        mayUseHugePages: isTrusted(connection.uid))
    } catch {
      counters.failedChannels += 1
      if isWorthALine(counters.failedChannels) { log.warning("no channel for pid \(connection.pid): \(error)") }
      throw Refusal(error.code)
    }
    let base = unsafe channel.memory.base
    let added = order { (engine) throws(EngineControl.Refusal) in
      unsafe try engine.addChannel(
        identifier: channel.identifier, base: base, size: channel.memory.size,
        doorbell: channel.doorbells[Int(engine.options.index)].number)
    }
    guard added else {
      depart(channel: channel)
      throw Refusal(ENOBUFS)
    }
    nextChannel &+= 1
    channels[channel.identifier] = channel
    connection.channels.insert(channel.identifier)
    return channel
  }

  /// Takes a channel and all its endpoints out of use at once; its memory goes when the engines have let go of it.
  func remove(_ identifier: UInt32) {
    guard let channel = channels.removeValue(forKey: identifier) else { return }
    for holder in channel.holders { connections[holder]?.channels.remove(identifier) }
    unsafe mn_store_release_u32(channel.memory.base + Int(MN_OFFSET_CHANNEL_DAMAGED), 1)
    for case let endpoint? in channel.endpoints where kept[endpoint.cookie] === endpoint { kept[endpoint.cookie] = nil }
    for case let endpoint? in channel.endpoints where endpointsByCookie[endpoint.cookie] === endpoint {
      channel.setState(endpoint.reference.index, .closed)
      forget(endpoint)
    }
    depart(channel: channel)
  }

  private func takeFaults(_ engine: EngineControl) {
    while let fault = engine.nextFault() {
      switch fault {
      case .channelDamaged(let identifier):
        guard let channel = channels[identifier] else { continue }
        counters.damagedChannels += 1
        for holder in channel.holders {
          let connection = connections[holder]
          log.warning(
            "pid \(connection?.pid ?? 0) (\(connection?.program ?? "?")) damaged its channel; it is disconnected")
          disconnect(holder)
        }
      }
    }
  }

  // MARK: Orders

  /// Gives every engine an order and waits for all of them.
  ///
  /// - Returns: whether all have carried it out.
  func order(_ give: (EngineControl) throws(EngineControl.Refusal) -> EngineControl.Ticket) -> Bool {
    var tickets: [(EngineControl, EngineControl.Ticket)] = []
    for engine in engines {
      do throws(EngineControl.Refusal) {
        tickets.append((engine, try give(engine)))
      } catch {
        counters.failedOrders += 1
        if isWorthALine(counters.failedOrders) { log.error("engine \(engine.options.index) refuses an order: \(error)") }
        return false
      }
    }
    // Less than a client waits for its answer, all engines together.
    let limit = mn_linux_monotonic() + 400_000_000
    for (engine, ticket) in tickets {
      let now = mn_linux_monotonic()
      guard engine.wait(for: ticket, milliseconds: Int(max(limit, now) - now) / 1_000_000) else {
        counters.failedOrders += 1
        if isWorthALine(counters.failedOrders) { log.error("engine \(engine.options.index) does not answer") }
        return false
      }
    }
    return true
  }

  /// Orders that are on their way out; what hangs on them is released when all are carried out.
  struct Departure {
    var tickets: [(EngineControl, EngineControl.Ticket)]
    /// Kept mapped and open until then.
    let channel: Channel
    /// nil: the whole channel.
    let endpoint: Endpoint?
  }

  private func depart(channel: Channel) {
    var tickets: [(EngineControl, EngineControl.Ticket)] = []
    for engine in engines {
      if let ticket = try? engine.removeChannel(identifier: channel.identifier) { tickets.append((engine, ticket)) }
    }
    departing.append(Departure(tickets: tickets, channel: channel, endpoint: nil))
  }

  func depart(_ endpoint: Endpoint, of channel: Channel) {
    var tickets: [(EngineControl, EngineControl.Ticket)] = []
    for engine in engines {
      if let ticket = try? engine.closeEndpoint(endpoint.reference) { tickets.append((engine, ticket)) }
    }
    departing.append(Departure(tickets: tickets, channel: channel, endpoint: endpoint))
  }

  func finishDepartures() {
    departing.removeAll { departure in
      guard departure.tickets.allSatisfy({ engine, ticket in engine.isDone(ticket) }) else { return false }
      if let endpoint = departure.endpoint {
        if endpoint.isKept {
          endpoint.isLeft = true
          departure.channel.markReceived(endpoint.reference.index)
          departure.channel.setState(endpoint.reference.index, endpoint.isWithdrawn ? .withdrawn : .left)
        } else {
          free(endpoint, of: departure.channel)
        }
      } else {
        keepUnread(of: departure.channel)
      }
      return true
    }
  }

  /// The block may be another endpoint's. No engine knows this one any more.
  func free(_ endpoint: Endpoint, of channel: Channel) {
    let index = endpoint.reference.index
    keepUnread(of: endpoint, in: channel)
    if kept[endpoint.cookie] === endpoint { kept[endpoint.cookie] = nil }
    channel.reclaim(index)
    channel.setState(index, .free)
    channel.endpoints[Int(index)] = nil
  }
}

/// Whether a user may end the daemon anyway.
func isTrusted(_ uid: UInt32) -> Bool { uid == 0 || uid == geteuid() }

/// What a client can bring about at will is logged the 1st, 2nd, 4th, 8th... time; the counters have the rest.
func isWorthALine(_ count: UInt64) -> Bool { count.nonzeroBitCount == 1 }

/// A refusal of every day: the channel is full, and the client opens another one; or there was no endpoint to take over, and
/// nothing was asked for.
func isOrdinary(_ refusal: Refusal, _ kind: Int) -> Bool {
  kind == MN_REQUEST_OPEN && (refusal.code == ENOSPC || refusal.code == ENOENT)
}

/// One client.
final class Connection {
  let descriptor: Descriptor
  /// 0: of a PID namespace that the daemon does not see.
  let pid: Int32
  let uid: UInt32
  /// May reload and capture.
  let isOperator: Bool
  let accepted = mn_linux_monotonic()
  var program = ""
  /// Its own, and those in which it has joined an endpoint.
  var channels: Set<UInt32> = []
  /// By the socket's cookie: how often it has joined, and not closed since.
  var joined: [UInt64: Int] = [:]
  /// The latest last.
  private(set) var refusals: [RefusalRecord] = []

  /// Remembers a refusal for whoever asks why a socket stays on the kernel.
  func note(_ refusal: Refusal, _ kind: Int, _ shadow: Descriptor?) {
    guard let record = RefusalRecord(refusal, kind, inode: shadow.map { mnc_inode($0.number) } ?? 0) else { return }
    if let index = refusals.firstIndex(where: { $0.isLike(record) }) {
      var again = refusals.remove(at: index)
      again.count += 1
      again.latest = record.latest
      refusals.append(again)
    } else {
      if refusals.count == RefusalRecord.perConnection { refusals.removeFirst() }
      refusals.append(record)
    }
  }

  init(descriptor: Descriptor, pid: Int32, uid: UInt32, isOperator: Bool) {
    self.descriptor = descriptor
    self.pid = pid
    self.uid = uid
    self.isOperator = isOperator
  }
}

/// Why a daemon ends by itself.
public struct StalledEngine: Error, CustomStringConvertible {
  public let index, seconds: Int
  public var description: String { "engine \(index) has made no round for \(seconds) s: programs go on by the kernel" }
}

/// Whether an engine makes its rounds, by looks a second apart. It is the looks that count: a daemon that was stopped, or a virtual
/// machine that was, finds all its engines where they were.
struct EnginePulse {
  enum Finding { case fine, quiet, gone }

  private var rounds: UInt64 = 0
  private var looks = 0
  private var asked = 0

  /// - Parameters:
  ///   - rounds: what the engine has counted.
  ///   - limit: looks after which it is gone; 0: never.
  /// - Returns: quiet: it may be asleep, and is to be asked for a round.
  mutating func feel(rounds: UInt64, limit: Int) -> Finding {
    if rounds != self.rounds {
      self = EnginePulse(rounds: rounds)
      return .fine
    }
    looks += 1
    if limit != 0 && looks >= limit && looks > asked + 1 && asked != 0 { return .gone }
    if asked == 0 && looks >= max(1, limit / 2) {
      asked = looks
      return .quiet
    }
    return .fine
  }

  /// Of an engine that was asked.
  var stalledSeconds: Int { asked != 0 && looks > asked ? looks : 0 }
}

/// What the control plane counts.
struct ControlCounters {
  var connections: UInt64 = 0
  var refusedConnections: UInt64 = 0
  var requests: UInt64 = 0
  var refusedRequests: UInt64 = 0
  /// Messages that no client of ours sends.
  var lies: UInt64 = 0
  var damagedChannels: UInt64 = 0
  var abandonedDatagrams: UInt64 = 0
  // For the log.
  var failedChannels: UInt64 = 0
  var failedOrders: UInt64 = 0
  var withdrawn: UInt64 = 0
}

/// A request as it came: bytes and descriptors. The descriptors are closed with it.
struct Message {
  /// 0: the other side hung up.
  let length: Int
  let descriptors: [Descriptor]
  private let isCut: Bool
  private let raw: mn_request

  /// nil: nothing to read after all.
  init?(from connection: Connection) {
    var raw = mn_request()
    var numbers = [Int32](repeating: -1, count: Int(MNC_DESCRIPTORS_SENT_MAX))
    var count: Int32 = 0
    var cut = false
    let length = unsafe withUnsafeMutableBytes(of: &raw) { bytes in
      unsafe mnc_receive(
        connection.descriptor.number, bytes.baseAddress!, bytes.count, &numbers, Int32(numbers.count), &count, &cut, false)
    }
    if length == -Int64(EAGAIN) { return nil }
    self.length = max(0, Int(length))
    descriptors = numbers.prefix(Int(count)).compactMap { number in
      try? Descriptor(number, of: mnc_closes_at_once(number) ? nil : connection.uid, "receive a descriptor")
    }
    isCut = cut
    self.raw = raw
  }

  /// The request, if form and framing are right.
  func request() throws(Refusal) -> mn_request {
    guard length == MemoryLayout<mn_request>.size, !isCut, raw.magic == MN_MAGIC,
      raw.version == UInt16(MN_ABI_VERSION),
      unsafe withUnsafeBytes(of: raw.reserved, { bytes in unsafe bytes.allSatisfy { $0 == 0 } }),
      MN_REQUEST_HELLO...MN_REQUEST_CAPTURE ~= Int(raw.kind)
    else { throw .lie }
    let carries = [MN_REQUEST_OPEN, MN_REQUEST_CONNECT].contains(Int(raw.kind)) ? 1 : 0
    guard descriptors.count == carries else { throw .lie }
    return raw
  }
}
