public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// How a socket gets its endpoint.
extension Socket {
  /// Asks the daemon for an endpoint for what the kernel has granted to the shadow `fd`.
  ///
  /// - Parameters:
  ///   - peer: the peer that the kernel could not connect the shadow to (an engine's network), or none.
  ///   - onlyKnown: only where it has been on Machnet before, and something is left of that.
  /// - Returns: whether the socket is offloaded now.
  static func attach(_ socket: SocketPointer, _ fd: Int32, peer: Name = .none, onlyKnown: Bool = false) -> Bool {
    guard let process = unsafe process, mn_is_at_home(), unsafe Lock.acquire(process) else { return false }
    defer { unsafe Lock.release(process) }
    if unsafe socket.pointee.isOffloaded { return true }
    // (Another thread may have closed it meanwhile.)
    guard unsafe mn_table_get(fd) == UnsafeMutableRawPointer(socket), unsafe mayAttach(socket, fd, peer), unsafe Control.finishGreeting(process) else {
      return false
    }
    defer {
      if unsafe process.pointee.unanswered != 0 && socket.pointee.endpoint == nil && !onlyKnown { unsafe socket.pointee.awaits = true }
    }

    var tries = 0
    while tries < 2 {
      tries += 1
      guard let channel = unsafe usableChannel(process) else {
        unsafe mn_log(1, "no channel to be had: socket % stays on the kernel", Int64(fd), 0)
        return false
      }
      var request = mn_request()
      unsafe Control.fill(&request, kind: MN_REQUEST_OPEN, process)
      request.channel = unsafe channel.pointee.identifier
      request.token = unsafe channel.pointee.token
      if onlyKnown { request.flags = UInt32(MN_OPEN_KNOWN) }
      if peer.port != 0 {
        request.flags = UInt32(MN_OPEN_PEER)
        request.peer = peer.mapped
        request.peer_port = peer.port
      }
      var answer = Control.Answer()
      defer { answer.discard() }
      guard let status = unsafe Control.exchange(process, &request, passing: fd, &answer, for: socket) else { return false }
      if status == 28 /* ENOSPC */ {
        unsafe channel.pointee.full = true
        continue
      }
      return unsafe opened(socket, fd, channel, &answer, process, peer) && socket.pointee.isOffloaded
    }
    return false
  }

  /// What the daemon has said of an endpoint is so from now on.
  ///
  /// - Returns: whether the socket is offloaded now.
  @inline(never)
  private static func opened(
    _ socket: SocketPointer, _ fd: Int32, _ asked: UnsafeMutablePointer<Channel>, _ answer: inout Control.Answer, _ process: ProcessPointer,
    _ peer: Name
  ) -> Bool {
    let status = answer.reply.status
    if status == 105 /* ENOBUFS: an engine is slow */ || status == 16 /* EBUSY: who passed it here has it still */ {
      unsafe socket.pointee.isSettling = true
      unsafe socket.pointee.awaits = socket.pointee.endpoint == nil
      unsafe Loss.postpone(process)
      return false
    }
    let joins = status == 0 && answer.reply.size != 0
    // (Where it cannot be mapped, the daemon takes this process's part back at its end.)
    let channel = unsafe joins ? Control.joinedChannel(process, &answer) ?? asked : asked
    let granted = unsafe status == 0 && (!joins || channel != asked) && answer.reply.endpoint < channel.pointee.capacity
      && answer.reply.engine < channel.pointee.engineCount
    let event = granted ? Process.copy(answer.descriptors[0]) : -1
    if event < 0 {
      if granted && !joins {
        // No descriptor is left for it.
        let old = unsafe socket.pointee.location
        unsafe socket.pointee.move(to: channel, answer.reply.endpoint)
        unsafe socket.pointee.local = Name(mapped: answer.reply.local, port: answer.reply.local_port)
        unsafe giveBack(socket, process)
        unsafe socket.pointee.move(to: old.channel, old.index)
      }
      unsafe mn_log(2, "socket % stays on the kernel: the daemon says errno %", Int64(fd), Int64(status))
      // EEXIST: another has it who sees other memory. What that one does, this process would not see.
      if status == 17 { unsafe socket.pointee.retired = .forGood }
      unsafe socket.pointee.refused = true
      unsafe socket.pointee.refusedGeneration = process.pointee.generation
      unsafe socket.pointee.awaits = false
      unsafe decide(socket)
      return false
    }
    unsafe adopt(socket, fd, channel, answer.reply, event: event, peer: peer, joins: joins)
    unsafe mn_log(2, "socket % is on Machnet, local port %", Int64(fd), Int64(answer.reply.local_port))
    return true
  }

  /// A slow daemon has opened an endpoint after all. (One that has begun too late says so instead.)
  ///
  /// - Parameter socket: nil when it has been closed since.
  @inline(never)
  static func openedLate(_ socket: SocketPointer?, _ process: ProcessPointer, _ answer: inout Control.Answer) {
    for index in 0..<(unsafe process.pointee.channelCount) {
      let channel = unsafe process.pointee.channels + index
      guard unsafe channel.pointee.identifier == answer.reply.channel else { continue }
      if let socket = unsafe socket, unsafe socket.pointee.fd >= 0 && !socket.pointee.isOffloaded && socket.pointee.retired == .no {
        // Its peer may have changed since.
        unsafe socket.pointee.awaits = opened(socket, socket.pointee.fd, channel, &answer, process, .none)
      } else {
        unsafe close(channel, answer.reply.endpoint, process, 0)
      }
    }
  }

  private static func usableChannel(_ process: ProcessPointer) -> UnsafeMutablePointer<Channel>? {
    for index in 0..<(unsafe process.pointee.channelCount) {
      let channel = unsafe process.pointee.channels + index
      if unsafe !channel.pointee.full && !channel.pointee.inherited && !channel.pointee.isDamaged {
        return unsafe channel
      }
    }
    return unsafe Control.openChannel(process)
  }

  private static func adopt(
    _ socket: SocketPointer, _ fd: Int32, _ channel: UnsafeMutablePointer<Channel>, _ reply: mn_reply, event: Int32, peer: Name,
    joins: Bool
  ) {
    let block = unsafe channel.pointee.base + Int(mn_endpoint_offset(reply.endpoint))
    let endpoint = unsafe block.assumingMemoryBound(to: mn_endpoint.self)
    unsafe Watch.leave(socket)
    if let process = unsafe process {
      if unsafe socket.pointee.holdsBlock { _ = unsafe mn_fetch_add_u32(word(socket, Int(MN_OFFSET_ENDPOINT_REFERENCES)), UInt32.max) }
      unsafe leaveOldBlock(socket, process)
    }
    unsafe socket.pointee.hasOldInput = false
    unsafe settle(socket)
    unsafe socket.pointee.attachments.wrappingAdd(1, ordering: .sequentiallyConsistent)
    let settings = unsafe socket.pointee.settings.load(ordering: .acquiring)
    if !joins {
      unsafe mn_endpoint_set_references(endpoint, 1)
      unsafe mn_endpoint_set_flags(endpoint, 0)
    }
    // A socket that comes back to a new daemon has had another one.
    unsafe dropEvent(socket)
    let held = unsafe holdRings(socket)
    unsafe socket.pointee.plan.block = nil
    unsafe socket.pointee.move(to: channel, reply.endpoint)
    unsafe socket.pointee.home = reply.engine
    unsafe socket.pointee.netns = UInt16(truncatingIfNeeded: reply.netns)
    unsafe socket.pointee.event = event
    unsafe socket.pointee.local = Name(mapped: reply.local, port: reply.local_port)
    unsafe socket.pointee.refused = false
    unsafe bindRings(socket)
    unsafe socket.pointee.hasJoined = joins
    unsafe socket.pointee.endpoint = endpoint
    held.release()
    mn_fence()
    unsafe setFlag(socket, Int(socket.pointee.shut.load(ordering: .relaxed)), true)
    unsafe readShadow(socket, fd, peer)
    // An option that another thread has just set may have missed the endpoint: pairs with `noteSetting`.
    if unsafe socket.pointee.settings.load(ordering: .acquiring) != settings { unsafe readOptions(endpoint, fd, socket.pointee.domain) }
    // What was passed to others, too, who have not all shown it, is used as by who passed it. Else there is an engine from here on.
    let isLeft = unsafe joins && state(socket) != UInt32(MN_ENDPOINT_LIVE)
    unsafe socket.pointee.holdsBlock = isLeft
    unsafe socket.pointee.retired = isLeft ? .passed : .no
    unsafe socket.pointee.engineLost = isLeft
    unsafe socket.pointee.undecided = false
    unsafe socket.pointee.awaits = false
    unsafe socket.pointee.attachments.wrappingAdd(1, ordering: .sequentiallyConsistent)
    unsafe countWatched(socket)
    unsafe Watch.attached(socket)
    if unsafe socket.pointee.kick >= 0 {
      var one: UInt64 = 1
      _ = unsafe mn_sys_write(socket.pointee.kick, &one, 8)
    }
  }

  /// What the shadow says is so of the endpoint. (The peer that it has may be one that no kernel knows.)
  @inline(never)
  private static func readShadow(_ socket: SocketPointer, _ fd: Int32, _ peer: Name) {
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    unsafe readOptions(endpoint, fd, socket.pointee.domain)
    unsafe readReceiveLimit(socket, fd)
    if unsafe flags(socket) & UInt32(MN_SOCKET_CONNECTED) == 0 { unsafe readPeer(endpoint, fd, socket.pointee.domain, stated: peer) }
  }

  /// Who the socket is connected to: the kernel's word, or where it could not connect, the program's.
  static func readPeer(_ endpoint: UnsafeMutablePointer<mn_endpoint>, _ fd: Int32, _ domain: Int32, stated: Name) {
    var peer = stated
    if peer.port == 0 { peer = kernelName(fd, domain, peer: true) ?? .none }
    unsafe mn_endpoint_set_peer(endpoint, peer.mapped)
    unsafe mn_endpoint_set_peer_port(endpoint, peer.port)
    let flags = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_FLAGS)
    if peer.port != 0 {
      _ = unsafe mn_fetch_or_u32(flags, UInt32(MN_SOCKET_CONNECTED))
    } else {
      _ = unsafe mn_fetch_and_u32(flags, ~UInt32(MN_SOCKET_CONNECTED))
    }
  }

  static func peer(_ socket: SocketPointer) -> Name? {
    guard let endpoint = unsafe socket.pointee.endpoint, unsafe flags(socket) & UInt32(MN_SOCKET_CONNECTED) != 0 else { return nil }
    return unsafe Name(address: UInt32(bigEndian: mn_endpoint_peer_address(endpoint)), port: mn_endpoint_peer_port(endpoint))
  }

  /// The shadow's own name or its peer, if it is IPv4 (or v4-mapped, or the IPv6 wildcard).
  @inline(never)
  static func kernelName(_ fd: Int32, _ domain: Int32, peer: Bool) -> Name? {
    var image: InlineArray<4, UInt64> = .init(repeating: 0)
    return unsafe withUnsafeMutableBytes(of: &image) { bytes -> Name? in
      var length: UInt32 = 32
      let result = unsafe peer
        ? mn_sys_getpeername(fd, bytes.baseAddress!, &length) : mn_sys_getsockname(fd, bytes.baseAddress!, &length)
      guard result == 0, case .ipv4(let name) = unsafe Name.parse(bytes.baseAddress!, length, domain: domain) else { return nil }
      return name
    }
  }

  /// A bound socket gets its endpoint if the rules may lead it to Machnet.
  ///
  /// - Parameter inherited: also where the rules do not name this program, if the last one has left something unread.
  @inline(never)
  static func attachBound(_ socket: SocketPointer, _ fd: Int32, _ process: ProcessPointer, inherited: Bool) {
    guard unsafe !socket.pointee.isOffloaded, let directory = unsafe process.pointee.directory,
      let bound = unsafe kernelName(fd, socket.pointee.domain, peer: false), !inherited || bound.port != 0
    else { return }
    unsafe refreshRules(process)
    let (mask, generation) = unsafe process.pointee.programMask
    let rules = directory.rules(generation: generation)
    let mayLead = unsafe rules.mayLeadToMachnet(program: mask.pointee, localAddress: bound.address, localPort: bound.port)
    if mayLead || inherited { _ = unsafe attach(socket, fd, onlyKnown: !mayLead) }
    if !mayLead { unsafe mn_head_always(socket, generation) }
    unsafe decide(socket)
  }

  /// Gives an unbound shadow a port, as the kernel would at its first send: the wildcard and an ephemeral port.
  static func autobind(_ fd: Int32, _ domain: Int32) {
    var image: InlineArray<4, UInt64> = .init(repeating: 0)
    image[0] = UInt64(UInt32(bitPattern: domain))
    unsafe withUnsafeBytes(of: &image) {
      // EINVAL: another thread was faster.
      _ = unsafe mn_sys_bind(fd, $0.baseAddress!, domain == Int32(MN_AF_INET) ? 16 : 28)
    }
  }
}

/// bind(2): the kernel first, always; what it grants may then be offloaded.
@c(mn_hook_bind)
public func bind(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
  guard let process = unsafe process, let socket = unsafe Socket.from(entry),
    case .ipv4(let name) = unsafe Name.parse(address, length, domain: socket.pointee.domain),
    let directory = unsafe process.pointee.directory
  else { return unsafe mn_real_bind(fd, address, length) }
  if directory.isEngineAddress(name.address) {
    // The kernel does not own this address; it still reserves the port.
    var on: Int32 = 1
    _ = unsafe mn_sys_setsockopt(fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_FREEBIND), &on, 4)
  }
  let result = unsafe mn_real_bind(fd, address, length)
  if result != 0 { return result }
  unsafe Socket.attachBound(socket, fd, process, inherited: false)
  return result
}

/// connect(2): the kernel in lockstep where it can.
@c(mn_hook_connect)
public func connect(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
  guard let process = unsafe process, let socket = unsafe Socket.from(entry), let directory = unsafe process.pointee.directory
  else { return unsafe mn_real_connect(fd, address, length) }
  let domain = unsafe socket.pointee.domain
  guard case .ipv4(var peer) = unsafe Name.parse(address, length, domain: domain), peer.port != 0,
    !peer.isMulticastOrBroadcast, !(peer.address == 0 && domain == Int32(MN_AF_INET6))
  else {
    // AF_UNSPEC dissolves the association; anything else is the kernel's to judge.
    let result = unsafe mn_real_connect(fd, address, length)
    if unsafe result == 0 && socket.pointee.isOffloaded {
      if Socket.kernelName(fd, domain, peer: false)?.port == 0 {
        unsafe Socket.retire(socket, .portless, fd)
      } else {
        unsafe Socket.reconnect(socket, fd, stated: .none)
      }
    }
    return result
  }
  if peer.address == 0 { peer.address = 0x7f00_0001 }

  var local = Socket.kernelName(fd, domain, peer: false) ?? .none
  let hostOwn = unsafe directory.isHostAddress(peer.address, netns: socket.pointee.netns)
  unsafe Socket.refreshRules(process)
  let route = hostOwn ? nil : directory.route(to: peer.address)
  let throughEngine = !hostOwn && (route != nil || directory.isEngineAddress(peer.address))
  let source = Socket.sourceAddress(directory, bound: local.address, to: peer.address, hostOwn: hostOwn)
  guard unsafe Socket.ruleLeadsToMachnet(process, directory, local: Name(address: source, port: local.port), remote: peer),
    hostOwn || throughEngine
  else {
    let result = unsafe mn_real_connect(fd, address, length)
    if unsafe result == 0 && socket.pointee.isOffloaded { unsafe Socket.reconnect(socket, fd, stated: .none) }
    if result == 0 { unsafe Socket.decide(socket) }
    return result
  }

  if throughEngine {
    // The kernel has no way to the engine's network: it keeps the port, we keep the peer.
    if local.port == 0 {
      var on: Int32 = 1
      _ = unsafe mn_sys_setsockopt(fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_FREEBIND), &on, 4)
      var image: InlineArray<4, UInt64> = .init(repeating: 0)
      unsafe withUnsafeMutableBytes(of: &image) { bytes in
        var size: UInt32 = 32
        unsafe Name(address: source, port: 0).store(bytes.baseAddress!, &size, domain: domain)
        _ = unsafe mn_sys_bind(fd, bytes.baseAddress!, size)
      }
      local = Socket.kernelName(fd, domain, peer: false) ?? .none
    }
    if unsafe socket.pointee.isOffloaded {
      unsafe Socket.reconnect(socket, fd, stated: peer)
      return 0
    }
    if unsafe Socket.attach(socket, fd, peer: peer) { return 0 }
    return unsafe mn_real_connect(fd, address, length)
  }

  let result = unsafe mn_real_connect(fd, address, length)
  if result == 0 {
    if unsafe socket.pointee.isOffloaded {
      unsafe Socket.reconnect(socket, fd, stated: .none)
    } else {
      _ = unsafe Socket.attach(socket, fd)
    }
  }
  return result
}

extension Socket {
  /// A table entry as a socket; nil for an epoll.
  @inline(__always)
  static func from(_ entry: UnsafeMutableRawPointer) -> SocketPointer? {
    unsafe mn_load_relaxed_u32(entry) == Kind.socket ? entry.assumingMemoryBound(to: Socket.self) : nil
  }

  /// The address that a datagram to `destination` will carry as its source (the engine's rule, `EngineControl`).
  static func sourceAddress(_ directory: Directory, bound: UInt32, to destination: UInt32, hostOwn: Bool) -> UInt32 {
    if bound != 0 { return bound }
    if destination >> 24 == 127 { return 0x7f00_0001 }
    if hostOwn || directory.isEngineAddress(destination) { return destination }
    if let interface = directory.route(to: destination) { return directory.interface(interface).address }
    return 0
  }

  static func refreshRules(_ process: ProcessPointer) {
    guard let directory = unsafe process.pointee.directory,
      unsafe directory.rulesGeneration != process.pointee.generation, unsafe Lock.acquire(process)
    else { return }
    unsafe Process.refreshMask(process)
    unsafe Lock.release(process)
  }

  static func ruleLeadsToMachnet(_ process: ProcessPointer, _ directory: Directory, local: Name, remote: Name) -> Bool {
    let (mask, generation) = unsafe process.pointee.programMask
    let rules = directory.rules(generation: generation)
    guard
      let index = unsafe rules.first(
        program: mask.pointee, localAddress: local.address, localPort: local.port, remoteAddress: remote.address,
        remotePort: remote.port)
    else { return false }
    return rules.rule(index).path == UInt8(MN_PATH_MACHNET)
  }

  /// Tells the daemon that the peer (and with it perhaps the local address) has changed.
  @inline(never)
  static func reconnect(_ socket: SocketPointer, _ fd: Int32, stated: Name) {
    guard let process = unsafe process, mn_is_at_home(), unsafe Lock.acquire(process) else { return }
    defer { unsafe Lock.release(process) }
    let channel = unsafe socket.pointee.channel.unsafelyUnwrapped
    var request = mn_request()
    unsafe Control.fill(&request, kind: MN_REQUEST_CONNECT, process)
    request.channel = unsafe channel.pointee.identifier
    request.endpoint = unsafe socket.pointee.index
    request.token = unsafe channel.pointee.token
    if stated.port != 0 {
      request.flags = UInt32(MN_OPEN_PEER)
      request.peer = stated.mapped
      request.peer_port = stated.port
    }
    var answer = Control.Answer()
    defer { answer.discard() }
    if unsafe process.pointee.control < 0 && !Control.finishGreeting(process) { return }
    let status = unsafe Control.exchange(process, &request, passing: fd, &answer, for: socket)
    if status == 0 { unsafe socket.pointee.local = Name(mapped: answer.reply.local, port: answer.reply.local_port) }
    // (What a slow daemon has been told, it does in the end.)
    let unanswered = unsafe process.pointee.unanswered
    unsafe socket.pointee.awaits = unanswered != 0 && unanswered != request.sequence
    unsafe readPeer(socket.pointee.endpoint.unsafelyUnwrapped, fd, socket.pointee.domain, stated: stated)
    unsafe forgetPlan(socket)
  }
}

/// Leaving Machnet.
extension Socket {
  /// The socket is its shadow from now on: what its rings hold is still delivered, everything else comes and goes by the
  /// kernel.
  ///
  /// Two kinds stay: endpoints that forked processes share, and those whose flows no kernel could carry (an engine's
  /// address, a peer behind an engine).
  ///
  /// - Parameter fd: a descriptor of it.
  @inline(never)
  static func retire(_ socket: SocketPointer, _ why: Retirement, _ fd: Int32) {
    guard let process = unsafe process else { return }
    // What was sent is with the engine, and what comes in meanwhile goes to the rings.
    if unsafe socket.pointee.isOffloaded { Wait.letLand() }
    guard unsafe Lock.acquire(process) else { return }
    defer { unsafe Lock.release(process) }
    var why = why
    if unsafe socket.pointee.isOffloaded {
      guard unsafe mn_load_relaxed_u32(word(socket, Int(MN_OFFSET_ENDPOINT_REFERENCES))) == 1,
        unsafe !isEnginesOwn(process, fd, socket.pointee.domain),
        unsafe why == .portless || peer(socket) == nil || kernelName(fd, socket.pointee.domain, peer: true) != nil
      else { return }
      // Nothing more goes into the TX ring; the engine sends what is there.
      unsafe socket.pointee.engineLost = true
      unsafe forgetPlan(socket)
      unsafe socket.pointee.retired = why
      unsafe countWatched(socket)
      // (A slow daemon may not have taken it for closed when somebody looks whether it is back.)
      unsafe mn_store_release_u32(word(socket, Int(MN_OFFSET_ENDPOINT_STATE)), UInt32(MN_ENDPOINT_CLOSED))
      unsafe giveBack(socket, process, keeping: true)
      unsafe socket.pointee.holdsBlock = true
      unsafe awaitState(socket, MN_ENDPOINT_LEFT)
      unsafe lose(socket)
      // The shadow knows its peer from now on.
      unsafe setFlag(socket, MN_SOCKET_CONNECTED, false)
      unsafe mn_log(2, "socket % leaves Machnet: it wants what only the kernel has", Int64(fd), 0)
    } else if why == .passed {
      // Once more; or there is nothing to come back to.
      if unsafe socket.pointee.retired == .passed { unsafe close(socket, process, keeping: true) } else { why = .forGood }
    }
    unsafe socket.pointee.retired = why
    unsafe socket.pointee.awaits = false
    if unsafe socket.pointee.endpoint == nil && why == .forGood { unsafe decide(socket) }
  }

  /// The daemon has given the socket back to the kernel: somebody has it who may not see its rings.
  @inline(__always)
  static func isWithdrawn(_ socket: SocketPointer) -> Bool { unsafe socket.pointee.isOffloaded && state(socket) >= UInt32(MN_ENDPOINT_LEAVING) }

  /// So it is this process's way from now on, too.
  @inline(never)
  static func withdraw(_ socket: SocketPointer) {
    guard let process = unsafe process, mn_is_at_home(), unsafe Lock.acquire(process) else { return }
    defer { unsafe Lock.release(process) }
    guard unsafe isWithdrawn(socket) else { return }
    unsafe socket.pointee.engineLost = true
    unsafe forgetPlan(socket)
    // Another process that sends by the same ring, and has not noticed, is to notice at its next datagram (`ring`).
    let (word, bit) = unsafe readyBit(socket)
    _ = unsafe mn_fetch_and_u64(word, ~bit)
    unsafe awaitState(socket, MN_ENDPOINT_WITHDRAWN)
    unsafe flushToShadow(socket)
    unsafe socket.pointee.retired = .forGood
    unsafe socket.pointee.holdsBlock = true
    unsafe lose(socket)
    unsafe mn_log(2, "socket % leaves Machnet: a process has it that may not share it", Int64(socket.pointee.fd), 0)
  }

  /// What comes by the shadow is newer than what is in the rings, once no engine fills them.
  private static func awaitState(_ socket: SocketPointer, _ wanted: Int) {
    let limit = mn_sys_nanoseconds() &+ 20_000_000
    while unsafe state(socket) != UInt32(wanted) && mn_sys_nanoseconds() < limit { _ = mn_sys_yield() }
  }

  /// The engine is gone for this socket: its rings are read to the end, all else is the shadow's. The caller holds the
  /// process's lock.
  @inline(never)
  static func lose(_ socket: SocketPointer) {
    unsafe socket.pointee.hasOldInput = hasInput(socket)
    unsafe Watch.unblockOutput(socket)
    if unsafe !socket.pointee.hasOldInput && socket.pointee.retired != .passed { unsafe Watch.leave(socket) }
    unsafe socket.pointee.engineLost = true
    unsafe forgetPlan(socket)
    unsafe socket.pointee.isSettling = true
    unsafe countWatched(socket)
    // Whoever sleeps on the rings is to look at the shadow from now on.
    unsafe Wait.signal(socket, word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT)))
  }

  /// From now on engines fill the rings (again), and the shadow may hold older datagrams.
  private static func settle(_ socket: SocketPointer) {
    unsafe socket.pointee.settlesUntil = 0
    if unsafe socket.pointee.isSettling { unsafe socket.byShadow = true }
  }

  /// A socket that this process has passed to others is on Machnet again, for all of them (MN_CLOSE_PASSING), if it is. Not while
  /// what it has sent by the shadow meanwhile may be unread: by a ring, the next would overtake it.
  @inline(never)
  static func rejoin(_ socket: SocketPointer) {
    guard unsafe socket.pointee.retired == .passed && state(socket) == UInt32(MN_ENDPOINT_LIVE), let process = unsafe process, mn_is_at_home(),
      unsafe mn_sys_nanoseconds() &- socket.pointee.sentPassed > settlement, unsafe Lock.acquire(process)
    else { return }
    defer { unsafe Lock.release(process) }
    let fd = unsafe socket.pointee.fd
    guard unsafe socket.pointee.retired == .passed && fd >= 0 else { return }
    unsafe settle(socket)
    unsafe readShadow(socket, fd, .none)
    unsafe socket.pointee.local = kernelName(fd, socket.pointee.domain, peer: false) ?? .none
    unsafe socket.pointee.holdsBlock = false
    unsafe socket.pointee.hasOldInput = false
    unsafe forgetPlan(socket)
    unsafe socket.pointee.retired = .no
    unsafe socket.pointee.engineLost = false
    unsafe countWatched(socket)
  }

  /// MN_ENDPOINT_* of its block.
  static func state(_ socket: SocketPointer) -> UInt32 { unsafe mn_load_acquire_u32(word(socket, Int(MN_OFFSET_ENDPOINT_STATE))) }

  /// How long datagrams of both ways may wait side by side, ns.
  static var settlement: UInt64 { 100_000_000 }

  /// Whether the socket may ask for an endpoint as far as its own doings go. The caller holds the process's lock.
  private static func mayAttach(_ socket: SocketPointer, _ fd: Int32, _ peer: Name) -> Bool {
    switch unsafe socket.pointee.retired {
    case .no: true
    // What the old rings hold is delivered first.
    case .portless: unsafe socket.pointee.endpoint == nil || !hasInput(socket)
    case .passed where unsafe state(socket) == UInt32(MN_ENDPOINT_LIVE): false
    case .passed, .forGood: unsafe peer.port != 0 || isEnginesOwn(process.unsafelyUnwrapped, fd, socket.pointee.domain)
    }
  }

  private static func isEnginesOwn(_ process: ProcessPointer, _ fd: Int32, _ domain: Int32) -> Bool {
    guard let directory = unsafe process.pointee.directory, let name = kernelName(fd, domain, peer: false) else { return false }
    return directory.isEngineAddress(name.address)
  }

  /// What the rings of the old endpoint held is not wanted any more. The caller holds the process's lock.
  static func leaveOldBlock(_ socket: SocketPointer, _ process: ProcessPointer) {
    unsafe socket.pointee.retired = .no
    guard unsafe socket.pointee.holdsBlock else { return }
    unsafe socket.pointee.holdsBlock = false
    unsafe close(socket, process, keeping: false)
  }
}

/// A descriptor of it is about to go to another process (SCM_RIGHTS). Whoever holds a socket reads from one queue, and the
/// kernel's is the only one that all can see.
@c(mn_hook_passing)
public func passing(_ entry: UnsafeMutableRawPointer, _ fd: Int32) {
  if let socket = unsafe Socket.from(entry) { unsafe Socket.retire(socket, .passed, fd) }
}

/// A stream of libc's is about to read and write it.
@c(mn_hook_stream)
public func stream(_ entry: UnsafeMutableRawPointer, _ fd: Int32) {
  if let socket = unsafe Socket.from(entry) { unsafe Socket.retire(socket, .forGood, fd) }
}

/// The process is about to become another program. Endpoints that it shares with others stay theirs; its own go, so that
/// what arrives from now on is found by whoever has the descriptor then. (Should the call fail, the sockets are the kernel's.)
@c(mn_hook_exec)
public func execing() {
  guard let process = unsafe process, mn_is_at_home() else { return }
  unsafe process.pointee.leaver = mn_thread_id()
  defer { unsafe process.pointee.leaver = 0 }
  unsafe process.pointee.sockets.forEach { socket in
    guard unsafe socket.pointee.isOffloaded else { return }
    let references = unsafe Socket.word(socket, Int(MN_OFFSET_ENDPOINT_REFERENCES))
    // (The part of one that has joined ends with its connection.)
    if unsafe socket.pointee.hasJoined || (mn_load_relaxed_u32(references) != 1 && mn_fetch_add_u32(references, UInt32.max) != 1) {
      unsafe socket.pointee.engineLost = true
      unsafe Socket.forgetPlan(socket)
      unsafe Socket.countWatched(socket)
    } else if unsafe socket.pointee.fd >= 0 {
      unsafe Socket.retire(socket, .portless, socket.pointee.fd)
    }
  }
}
