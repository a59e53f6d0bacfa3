public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// What the rules say of a flow, and what the destination is: one word, so that threads that send to several destinations on one
/// socket never find one's verdict with another's name.
struct Judgement {
  static let toMachnet: UInt64 = 1
  static let lossIsError: UInt64 = 2
  /// The destination is this host.
  static let isLocal: UInt64 = 4
  /// The rule says transport machnet.
  static let bySession: UInt64 = 8

  /// Destination, generation and attachments (their low bits; the whole of them is in `Socket.judgedBy`), flags.
  var word: UInt64
  /// Of the rules that it was made by.
  let generation: UInt32

  init(word: UInt64, generation: UInt32) {
    self.word = word
    self.generation = generation
  }
  init(_ destination: Name, _ generation: UInt32, _ attachments: UInt32) {
    self.generation = generation
    word = UInt64(destination.address) << 32 | UInt64(destination.port) << 16 | UInt64((generation & 0x3f) << 10 | (attachments & 0x3f) << 4)
  }

  func has(_ flag: UInt64) -> Bool { word & flag != 0 }
  /// MN_RECORD_MACHNET or 0.
  var recordFlags: Int { has(Judgement.bySession) ? MN_RECORD_MACHNET : 0 }
}

/// Where a datagram goes.
enum Verdict {
  case kernel
  case ring
  /// The rule says so of a lost engine.
  case down
}

/// One datagram to be sent, however the program expressed it.
@safe
struct SendCall {
  var fd: Int32
  var flags: Int32
  var vectors: UnsafePointer<mn_iovec>?
  var vectorCount: Int
  var size: Int
  /// The name that the program gave; nil: the peer.
  var name: UnsafeRawPointer?
  var nameLength: UInt32
  var control: UnsafeRawPointer?
  var controlLength: Int
  /// The program called sendto or one of its short forms.
  var isPlain = false

  /// The same datagram on the shadow, by the program's own call: a filter of system calls may allow no other.
  func onShadow() -> Int {
    if isPlain { return unsafe Int(mn_real_sendto(fd, vectors.unsafelyUnwrapped[0].base, size, flags, name, nameLength)) }
    var message = unsafe mn_msghdr(
      name: UnsafeMutableRawPointer(mutating: name), name_length: nameLength, vectors: UnsafeMutablePointer(mutating: vectors),
      vector_count: vectorCount, control: UnsafeMutableRawPointer(mutating: control), control_length: controlLength, flags: 0)
    return unsafe Int(mn_real_sendmsg(fd, &message, flags))
  }
}

/// What a program's control messages ask of a datagram.
private struct SendOptions {
  var source: UInt32 = 0
  var hasSource = false
  var ttl: UInt8 = 0
  var hasTTL = false
  var tos: UInt8 = 0
  var hasTOS = false
  var segment: UInt16 = 0

  /// - Returns: false when something is asked that only the kernel can do or judge.
  mutating func parse(_ control: UnsafeRawPointer, _ length: Int) -> Bool {
    var at = 0
    while at + 16 <= length {
      let header = unsafe (control + at).loadUnaligned(as: mn_cmsghdr.self)
      guard header.length >= 16, header.length <= length - at else { return false }
      let size = Int(header.length) - 16
      let data = unsafe control + at + 16
      switch (Int(header.level), Int(header.type)) {
      case (MN_IPPROTO_IP, MN_IP_PKTINFO) where size >= 12:
        source = unsafe UInt32(bigEndian: data.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        hasSource = source != 0
      case (MN_IPPROTO_IPV6, MN_IPV6_PKTINFO) where size >= 20:
        guard unsafe UInt32(bigEndian: data.loadUnaligned(fromByteOffset: 8, as: UInt32.self)) == 0xffff else { return false }
        source = unsafe UInt32(bigEndian: data.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        hasSource = source != 0
      case (MN_IPPROTO_IP, MN_IP_TTL) where size >= 4:
        let value = unsafe data.loadUnaligned(as: Int32.self)
        guard value >= 1 && value <= 255 else { return false }
        ttl = UInt8(value)
        hasTTL = true
      case (MN_IPPROTO_IP, MN_IP_TOS) where size == 4 || size == 1:
        let value = unsafe size == 4 ? data.loadUnaligned(as: Int32.self) : Int32(data.load(as: UInt8.self))
        guard value >= 0 && value <= 255 else { return false }
        tos = UInt8(value)
        hasTOS = true
      case (MN_IPPROTO_UDP, MN_UDP_SEGMENT) where size == 2:
        segment = unsafe data.loadUnaligned(as: UInt16.self)
      default:
        return false
      }
      at += (Int(header.length) + 7) & ~7
    }
    return true
  }
}

/// What the kernel does for a datagram socket and no ring can: the shadow carries such a send. All other flags mean
/// nothing to UDP, or mean here what they mean there.
private let kernelsFlags = Int32(
  MN_MSG_OOB | MN_MSG_DONTROUTE | MN_MSG_PROBE | MN_MSG_MORE | MN_MSG_SENDPAGE_NOTLAST | MN_MSG_ZEROCOPY)
/// UDP_MAX_SEGMENTS of the kernel.
private let segmentsMax = 128

extension Socket {
  /// Sends one datagram where its flow leads.
  ///
  /// - Returns: as sendmsg(2), errno set on -1.
  static func send(_ socket: SocketPointer, _ call: inout SendCall) -> Int {
    guard let process = unsafe process, call.flags & kernelsFlags == 0, unsafe !socket.pointee.corked
    else { return unsafe sendByKernel(socket, call) }
    // A daemon that has come back has another directory.
    if unsafe socket.pointee.engineLost {
      Loss.reattach()
      unsafe rejoin(socket)
      if unsafe socket.pointee.retired == .passed { unsafe socket.pointee.sentPassed = mn_sys_nanoseconds() }
    }
    let attachments = unsafe socket.pointee.attachments.load(ordering: .acquiring)
    guard let directory = unsafe process.pointee.directory else { return unsafe countedOnShadow(socket, call) }

    let destination: Name
    if unsafe call.name == nil {
      guard unsafe socket.pointee.endpoint != nil, let peer = unsafe peer(socket) else { return call.onShadow() }
      destination = peer
    } else {
      guard case .ipv4(var name) = unsafe Name.parse(call.name, call.nameLength, domain: socket.pointee.domain),
        name.port != 0, !name.isMulticastOrBroadcast,
        // "::" is this host by IPv4 or by IPv6, as the kernel decides.
        unsafe !(name.address == 0 && socket.pointee.domain == Int32(MN_AF_INET6))
      else { return call.onShadow() }
      // The kernel takes the wildcard as "this host".
      if name.address == 0 { name.address = 0x7f00_0001 }
      destination = name
    }

    let departures = directory.departures
    let judgement = unsafe judge(socket, process, directory, destination, attachments)
    switch unsafe verdict(socket, process, directory, destination, judgement) {
    case .kernel:
      return unsafe countedOnShadow(socket, call)
    case .down:
      mn_set_errno(Int32(MN_ENETDOWN))
      return -1
    case .ring:
      break
    }
    // (Asked each second, not at each call.)
    if unsafe socket.pointee.awaits { Loss.reattach() }
    if unsafe !socket.pointee.isOffloaded {
      if unsafe socket.pointee.awaits { return call.onShadow() }
      if unsafe kernelName(call.fd, socket.pointee.domain, peer: false)?.port == 0 {
        unsafe autobind(call.fd, socket.pointee.domain)
      }
      guard unsafe attach(socket, call.fd) else { return call.onShadow() }
    }

    var options = SendOptions()
    if call.controlLength > 0 {
      guard let control = unsafe call.control, unsafe options.parse(control, call.controlLength),
        // The kernel has its own word for a source that is nobody's here.
        !options.hasSource || directory.isHostAddress(options.source, netns: unsafe socket.pointee.netns)
          || directory.isEngineAddress(options.source)
      else { return unsafe countedOnShadow(socket, call) }
    }
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    if unsafe mn_load_relaxed_u32(word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0 {
      let error = unsafe mn_exchange_u32(word(socket, Int(MN_OFFSET_ENDPOINT_ERROR)), 0)
      if error != 0 {
        mn_set_errno(Int32(truncatingIfNeeded: error))
        return -1
      }
    }
    if unsafe flags(socket) & UInt32(MN_SOCKET_SHUTDOWN_WRITE) != 0 { return call.onShadow() }
    if call.size > Int(MN_DATAGRAM_MAX) {
      mn_set_errno(Int32(MN_EMSGSIZE))
      return -1
    }
    if options.segment == 0 { options.segment = unsafe mn_endpoint_segment(endpoint) }
    if options.segment != 0 && call.size > Int(options.segment) * segmentsMax { return unsafe countedOnShadow(socket, call) }

    let number = call.fd
    var held = false
    var mask: UInt64 = 0
    defer { if held { unsafe letGo(socket, mask) } }
    while true {
      switch unsafe enqueue(socket, &call, destination, options, judgement) {
      case .done:
        unsafe noteSender(socket, process)
        unsafe plan(socket, directory, destination, judgement, departures, attachments)
        unsafe ring(socket, directory)
        return call.size
      case .moved: continue
      case .reentered:
        // A signal handler sends while the thread it interrupted is inside this socket: the shadow has no such lock.
        return unsafe countedOnShadow(socket, call)
      case .full:
        unsafe ring(socket, directory)
        if unsafe engineIsGone(socket, process) { return unsafe countedOnShadow(socket, call) }
        if unsafe isNonblocking(socket, call.flags) {
          unsafe Wait.armWritable(socket)
          return fail(MN_EAGAIN)
        }
        if !held {
          mn_has_unwind_tables()
          held = true
          if unsafe !hold(socket, number, &mask) { return fail(MN_EBADF) }
        }
        switch unsafe Wait.writable(socket, number, &call.fd, mask) {
        case .ready: continue
        case .failed(let error): return fail(error)
        case .restarted:
          call.fd = number
          return call.onShadow()
        case .lost:
          unsafe call.fd = pin(socket, call.fd)
          return unsafe countedOnShadow(socket, call)
        }
      }
    }
  }

  @inline(__always)
  static func noteSender(_ socket: SocketPointer, _ process: ProcessPointer) {
    if unsafe !mn_is_sender(socket) { unsafe mn_sender_note(socket) }
  }

  private enum Enqueued { case done, full, reentered, moved }

  /// Copies the datagram into the TX ring and publishes it.
  @inline(__always)
  private static func enqueue(_ socket: SocketPointer, _ call: inout SendCall, _ destination: Name, _ options: SendOptions, _ judgement: Judgement)
    -> Enqueued
  {
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    let lock = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_TX_LOCK)
    guard unsafe Lock.acquire(lock) else { return .reentered }
    defer { unsafe Lock.release(lock) }
    // (Another thread has just given the endpoint up.)
    if unsafe socket.pointee.engineLost { return .reentered }
    // (Or shown the socket to a new daemon: the lock is the old one's.)
    if unsafe socket.pointee.endpoint != endpoint { return .moved }
    let writer = unsafe socket.pointee.writer
    let tail = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_TX_TAIL)
    unsafe writer.pointee.resume(at: tail)
    guard let record = unsafe writer.pointee.reserve(call.size) else { return .full }
    let header = unsafe record.header
    var flags = judgement.recordFlags
    unsafe header.pointee.remote = destination.mapped
    unsafe header.pointee.remote_port = destination.port
    if options.hasSource {
      flags |= MN_RECORD_LOCAL_ADDRESS
      unsafe header.pointee.local = Name(address: options.source, port: 0).mapped
    }
    if unsafe options.hasTTL || mn_endpoint_ttl_set(endpoint) != 0 {
      flags |= MN_RECORD_TTL
      unsafe header.pointee.ttl = options.hasTTL ? options.ttl : mn_endpoint_ttl(endpoint)
    }
    if unsafe options.hasTOS || mn_endpoint_tos_set(endpoint) != 0 {
      flags |= MN_RECORD_TOS
      unsafe header.pointee.tos = options.hasTOS ? options.tos : mn_endpoint_tos(endpoint)
    }
    if unsafe mn_endpoint_mtu_discover(endpoint) == UInt32(MN_IP_PMTUDISC_DO) { flags |= MN_RECORD_DONT_FRAGMENT }
    unsafe header.pointee.flags = UInt16(truncatingIfNeeded: flags)
    unsafe header.pointee.segment = options.segment

    var to = unsafe record.payload
    var left = call.size
    var index = 0
    while left > 0, index < call.vectorCount {
      let vector = unsafe call.vectors.unsafelyUnwrapped[index]
      // The vectors are the program's memory and may have changed since they were added up.
      let size = unsafe min(vector.length, left)
      if size > 0, let base = unsafe vector.base { unsafe mn_copy(to, base, size) }
      unsafe to += size
      left -= size
      index += 1
    }
    unsafe writer.pointee.commit(record)
    unsafe writer.pointee.publish(at: tail)
    return .done
  }

  /// Tells the home engine, if it needs to be told.
  @inline(never)
  static func ring(_ socket: SocketPointer, _ directory: Directory) {
    let channel = unsafe socket.pointee.channel.unsafelyUnwrapped
    let home = unsafe socket.pointee.home
    let (bits, bit) = unsafe readyBit(socket)
    // The published tail comes before both looks: pairs with the engine's fence after it cleared the bit, and with
    // its fence after it wrote `sleeping`.
    mn_fence()
    if unsafe mn_load_relaxed_u64(bits) & bit == 0 {
      // No engine will clear the bit of an endpoint that it has let go of; else it finds what was published before.
      _ = unsafe mn_fetch_or_u64(bits, bit)
      if unsafe isWithdrawn(socket) { return unsafe withdraw(socket) }
    }
    if unsafe mn_load_relaxed_u32(directory.engineWord(home)) != 0 {
      var one: UInt64 = 1
      _ = unsafe mn_sys_write(channel.pointee.doorbells[Int(home & 15)], &one, 8)
    }
  }

  /// The bit that tells the home engine of something in the TX ring, and where it stands.
  static func readyBit(_ socket: SocketPointer) -> (word: UnsafeMutableRawPointer, bit: UInt64) {
    let index = unsafe socket.pointee.index
    let base = unsafe socket.pointee.channel.unsafelyUnwrapped.pointee.base + Int(MN_CHANNEL_READY)
    return unsafe (base + Int(socket.pointee.home) * 64 + Int(index >> 6) * 8, 1 << UInt64(index & 63))
  }

  /// What the rules say of a datagram to `destination`: remembered for the last one.
  ///
  /// - Parameter attachments: of the socket, read before.
  @inline(__always)
  static func judge(
    _ socket: SocketPointer, _ process: ProcessPointer, _ directory: Directory, _ destination: Name, _ attachments: UInt32
  ) -> Judgement {
    let generation = directory.rulesGeneration
    let known = unsafe Judgement(word: socket.pointee.judgement, generation: generation)
    if unsafe known.word & ~0xf == Judgement(destination, generation, attachments).word
      && socket.pointee.judgedBy == UInt64(generation) << 32 | UInt64(attachments)
    {
      return known
    }
    return unsafe classify(socket, process, directory, destination, attachments)
  }

  /// Where a datagram to `destination` goes. Whether a local endpoint listens there is asked every time, because programs come
  /// and go.
  @inline(__always)
  static func verdict(
    _ socket: SocketPointer, _ process: ProcessPointer, _ directory: Directory, _ destination: Name, _ judgement: Judgement
  ) -> Verdict {
    if !judgement.has(Judgement.toMachnet) { return .kernel }
    if unsafe socket.pointee.engineLost || (socket.pointee.refused && socket.pointee.refusedGeneration == directory.rulesGeneration) {
      return unsafe judgement.has(Judgement.lossIsError) && socket.pointee.engineLost && socket.pointee.retired == .no ? .down : .kernel
    }
    // A local destination that no endpoint of the daemon owns is some plain program's: through the shadow.
    if unsafe judgement.has(Judgement.isLocal) && !directory.hasLocalEndpoint(
      netns: socket.pointee.netns, address: destination.address, port: destination.port)
    {
      return .kernel
    }
    if unsafe mn_departed_until() != 0 && judgement.has(Judgement.isLocal)
      && hasDeparted(process, netns: socket.pointee.netns, destination)
    {
      return .kernel
    }
    return .ring
  }

  @inline(never)
  private static func classify(
    _ socket: SocketPointer, _ process: ProcessPointer, _ directory: Directory, _ destination: Name, _ attachments: UInt32
  ) -> Judgement {
    unsafe refreshRules(process)
    let (mask, generation) = unsafe process.pointee.programMask
    let hostOwn = unsafe directory.isHostAddress(destination.address, netns: socket.pointee.netns)
    let reachable = hostOwn || directory.isEngineAddress(destination.address) || directory.route(to: destination.address) != nil
    let local = unsafe socket.pointee.local
    let source = sourceAddress(directory, bound: local.address, to: destination.address, hostOwn: hostOwn)
    let rules = directory.rules(generation: generation)
    var judgement = Judgement(destination, generation, attachments)
    var ruledToMachnet = false
    if hostOwn { judgement.word |= Judgement.isLocal }
    if let index = unsafe rules.first(
      program: mask.pointee, localAddress: source, localPort: local.port, remoteAddress: destination.address,
      remotePort: destination.port)
    {
      let rule = rules.rule(index)
      ruledToMachnet = rule.path == UInt8(MN_PATH_MACHNET)
      if rule.on_engine_loss == UInt8(MN_LOSS_ERROR) { judgement.word |= Judgement.lossIsError }
      if rule.transport == UInt8(MN_TRANSPORT_MACHNET) { judgement.word |= Judgement.bySession }
    }
    // (What a rule leads to Machnet and no interface reaches may be reachable tomorrow.)
    if !ruledToMachnet { unsafe mn_head_remember(socket, destination.address, destination.port, generation) }
    if ruledToMachnet && reachable { judgement.word |= Judgement.toMachnet }
    unsafe socket.pointee.judgedBy = UInt64(generation) << 32 | UInt64(attachments)
    unsafe socket.pointee.judgement = judgement.word
    return judgement
  }

  /// What the engine had not taken when it was lost goes out by the shadow. The caller holds the process's lock.
  static func flushToShadow(_ socket: SocketPointer) {
    guard unsafe socket.pointee.fd >= 0 else { return }
    let lock = unsafe word(socket, Int(MN_OFFSET_ENDPOINT_TX_LOCK))
    guard unsafe Lock.acquire(lock) else { return }
    defer { unsafe Lock.release(lock) }
    var reader = unsafe socket.pointee.writer.pointee.reader
    while case .record(let record) = reader.peek() {
      let header = unsafe record.header
      let name = unsafe Name(mapped: header.pointee.remote, port: header.pointee.remote_port)
      var image: InlineArray<4, UInt64> = .init(repeating: 0)
      var vector = unsafe mn_iovec(base: record.payload, length: record.length)
      unsafe withUnsafeMutableBytes(of: &image) { bytes in
        var size: UInt32 = 32
        unsafe name.store(bytes.baseAddress!, &size, domain: socket.pointee.domain)
        unsafe withUnsafeMutablePointer(to: &vector) { vector in
          var message = unsafe mn_msghdr(
            name: bytes.baseAddress!, name_length: size, vectors: vector, vector_count: 1, control: nil, control_length: 0,
            flags: 0)
          _ = unsafe mn_sys_sendmsg(socket.pointee.fd, &message, Int32(MN_MSG_DONTWAIT | MN_MSG_NOSIGNAL))
        }
      }
      reader.advance(record)
    }
    reader.publish()
    unsafe socket.pointee.engineLost = true
  }

  /// A send that is the kernel's whatever the rules say. What MSG_MORE and UDP_CORK have begun there is finished there.
  private static func sendByKernel(_ socket: SocketPointer, _ call: SendCall) -> Int {
    let more = call.flags & Int32(MN_MSG_MORE) != 0
    if unsafe more || socket.pointee.corked { unsafe cork(socket, more || isCorkedByOption(call.fd)) }
    return unsafe countedOnShadow(socket, call)
  }

  static func cork(_ socket: SocketPointer, _ corked: Bool) {
    unsafe socket.pointee.corked = corked
    // The short way does not ask.
    unsafe forgetPlan(socket)
  }

  /// UDP_CORK.
  static func isCorkedByOption(_ fd: Int32) -> Bool {
    var value: Int32 = 0
    var length: UInt32 = 4
    return unsafe mn_sys_getsockopt(fd, Int32(MN_IPPROTO_UDP), Int32(MN_UDP_CORK), &value, &length) == 0 && value != 0
  }

  private static func countedOnShadow(_ socket: SocketPointer, _ call: SendCall) -> Int {
    let result = call.onShadow()
    if let endpoint = unsafe socket.pointee.endpoint, result >= 0 {
      unsafe mn_endpoint_count_sent(endpoint, Int64(result))
    }
    return result
  }

  /// Looks whether the daemon has died when the engine has taken nothing for two milliseconds or so.
  static func engineIsGone(_ socket: SocketPointer, _ process: ProcessPointer) -> Bool {
    if unsafe socket.pointee.engineLost { return true }
    let now = mn_cycles()
    let head = unsafe unsent(socket)
    if unsafe head != socket.pointee.progressHead {
      unsafe socket.pointee.progressHead = head
      unsafe socket.pointee.progress = now
      return false
    }
    if unsafe now &- socket.pointee.progress < 4_000_000 { return false }
    unsafe socket.pointee.progress = now
    return unsafe Loss.check(process)
  }
}

// ------------------------------------------------------------------------------------------------------------ hooks

@c(mn_hook_sendto)
public func sendto(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ data: UnsafeRawPointer?, _ size: Int, _ flags: Int32,
  _ address: UnsafeRawPointer?, _ length: UInt32
) -> Int {
  // An empty name, which sendmsg takes for none, and one that is too long are the kernel's to refuse.
  guard let socket = unsafe Socket.from(entry), unsafe address == nil || length >= 1 && length <= 128, size >= 0
  else { return unsafe Int(mn_real_sendto(fd, data, size, flags, address, length)) }
  var vector = unsafe mn_iovec(base: UnsafeMutableRawPointer(mutating: data), length: size)
  return unsafe withUnsafePointer(to: &vector) { vector in
    var call = unsafe SendCall(
      fd: fd, flags: flags, vectors: vector, vectorCount: 1, size: size, name: address, nameLength: length, control: nil,
      controlLength: 0, isPlain: true)
    return unsafe Socket.send(socket, &call)
  }
}

extension SendCall {
  /// - Returns: nil when the vectors are the kernel's to refuse.
  init?(_ fd: Int32, _ message: UnsafePointer<mn_msghdr>, _ flags: Int32) {
    let count = unsafe message.pointee.vector_count
    guard count >= 0, count <= 1024, unsafe count == 0 || message.pointee.vectors != nil,
      unsafe Int32(bitPattern: message.pointee.name_length) >= 0
    else { return nil }
    var total = 0
    for index in 0..<count {
      let length = unsafe message.pointee.vectors[index].length
      let (sum, overflow) = total.addingReportingOverflow(length)
      if overflow || length < 0 { return nil }
      total = sum
    }
    // An empty name is none.
    unsafe self.init(
      fd: fd, flags: flags, vectors: UnsafePointer(message.pointee.vectors), vectorCount: count, size: total,
      name: message.pointee.name_length == 0 ? nil : UnsafeRawPointer(message.pointee.name),
      nameLength: message.pointee.name_length,
      control: UnsafeRawPointer(message.pointee.control), controlLength: message.pointee.control_length)
  }
}

/// One message of sendmsg or sendmmsg. One buffer without control data is what sendto sends, and takes its short way.
@inline(never)
private func send(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ message: UnsafePointer<mn_msghdr>, _ flags: Int32) -> Int {
  if unsafe mn_head_quick(entry) && message.pointee.vector_count == 1 && message.pointee.control_length == 0,
    let vector = unsafe message.pointee.vectors, let data = unsafe vector.pointee.base
  {
    let length = unsafe message.pointee.name_length
    let sent = unsafe quickSendTo(
      entry, data, vector.pointee.length, quickOnly | UInt64(UInt32(bitPattern: flags)),
      length == 0 ? nil : UnsafeRawPointer(message.pointee.name), length)
    if sent != Int.min { return sent }
  }
  guard let socket = unsafe Socket.from(entry), var call = unsafe SendCall(fd, message, flags) else {
    return unsafe Int(mn_real_sendmsg(fd, message, flags))
  }
  return unsafe Socket.send(socket, &call)
}

@c(mn_hook_sendmsg)
public func sendmsg(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ message: UnsafePointer<mn_msghdr>?, _ flags: Int32) -> Int {
  guard let message = unsafe message else { return Int(mn_real_sendmsg(fd, nil, flags)) }
  return unsafe send(entry, fd, message, flags)
}

/// sendmmsg(2): as many as go; an error is reported only when nothing went.
@c(mn_hook_sendmmsg)
public func sendmmsg(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ messages: UnsafeMutablePointer<mn_mmsghdr>?, _ count: UInt32, _ flags: Int32
) -> Int32 {
  guard let messages = unsafe messages else {
    mn_set_errno(Int32(MN_EFAULT))
    return count == 0 ? 0 : -1
  }
  let saved = mn_get_errno()
  var sent: UInt32 = 0
  // The kernel, too, takes at most 1024 (UIO_MAXIOV) at a time.
  while sent < min(count, 1024) {
    let message = unsafe messages + Int(sent)
    let result = unsafe withUnsafePointer(to: &message.pointee.header) { unsafe send(entry, fd, $0, flags) }
    if result < 0 { break }
    unsafe message.pointee.length = UInt32(truncatingIfNeeded: result)
    sent += 1
  }
  if sent > 0 { mn_set_errno(saved) }
  return sent > 0 || count == 0 ? Int32(sent) : -1
}
