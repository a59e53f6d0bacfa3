public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// Conversation with the daemon: one request, one answer, each within the limit that the connection's socket has
/// (half a second). Whatever goes wrong, the program is left on the kernel.
enum Control {
  /// What an answer brought.
  struct Answer {
    var reply = mn_reply()
    var descriptors: InlineArray<18, Int32> = .init(repeating: -1)
    var descriptorCount = 0

    /// Closes what nobody has taken.
    @inline(never)
    mutating func discard() {
      for index in 0..<descriptorCount where descriptors[index] >= 0 {
        _ = mn_sys_close(descriptors[index])
        descriptors[index] = -1
      }
    }

    mutating func take(_ index: Int) -> Int32 {
      let fd = descriptors[index]
      descriptors[index] = -1
      return fd
    }
  }

  /// Connects and says hello; the answer is read by `finishGreeting` when it is needed.
  static func greet(_ process: ProcessPointer) {
    unsafe process.pointee.lastAttempt = mn_sys_nanoseconds()
    let path = unsafe mn_environment("MACHNET_SOCKET") ?? staticPointer("/run/machnet/machnetd.sock")
    let fd = unsafe mn_sys_connect_control(path)
    if fd < 0 {
      unsafe mn_log(2, "no daemon (errno %): every socket stays on the kernel", Int64(-fd), 0)
      return
    }
    let high = Process.hide(fd)
    var request = mn_request()
    unsafe fill(&request, kind: MN_REQUEST_HELLO, process)
    unsafe withUnsafeMutableBytes(of: &request.program) { program in
      // (Not `&`: that would be an access to all of the process, while other threads take its lock.)
      unsafe withUnsafeBytes(of: process.pointee.executable) { unsafe mn_copy(program.baseAddress!, $0.baseAddress!, 64) }
    }
    if !send(high, &request, passing: -1) {
      Process.drop(high)
      return
    }
    unsafe process.pointee.control = high
    unsafe process.pointee.greeting = true
  }

  /// Makes sure that the daemon's directory is mapped. The caller holds the process's lock.
  static func finishGreeting(_ process: ProcessPointer) -> Bool {
    if unsafe process.pointee.control < 0 {
      // Once a second at most: a daemon may have been started since.
      if unsafe mn_sys_nanoseconds() &- process.pointee.lastAttempt < 1_000_000_000 && process.pointee.lastAttempt != 0 {
        return false
      }
      unsafe greet(process)
      if unsafe process.pointee.control < 0 { return false }
    }
    if unsafe !process.pointee.greeting { return true }
    unsafe process.pointee.greeting = false
    var answer = Answer()
    guard unsafe receive(process.pointee.control, &answer, sequence: process.pointee.sequence) > 0 else {
      unsafe lose(process)
      return false
    }
    defer { answer.discard() }
    guard answer.reply.status == 0, answer.descriptorCount == 1,
      let base = unsafe mn_sys_map_shared(answer.descriptors[0], Int(MN_DIRECTORY_SIZE), false)
    else {
      unsafe mn_log(1, "the daemon refused this process (status %)", Int64(answer.reply.status), 0)
      unsafe lose(process)
      return false
    }
    let directory = unsafe Directory(unsafe: base)
    guard directory.isValid else {
      unsafe mn_sys_unmap_shared(base, Int(MN_DIRECTORY_SIZE))
      unsafe mn_log(1, "the daemon speaks another version", 0, 0)
      unsafe lose(process)
      return false
    }
    unsafe process.pointee.use(directory: base)
    unsafe mn_rules_follow(base + Int(MN_DIRECTORY_RULES_GENERATION))
    // Any value but the present one: the program's mask is to be worked out.
    unsafe process.pointee.forgetMask(generation: directory.rulesGeneration &- 1)
    return true
  }

  /// The connection is of no use any more.
  static func lose(_ process: ProcessPointer) {
    unsafe process.pointee.greeting = false
    unsafe process.pointee.unanswered = 0
    let control = unsafe process.pointee.control
    unsafe process.pointee.control = -1
    Process.drop(control)
  }

  @inline(never)
  static func fill(_ request: inout mn_request, kind: Int, _ process: ProcessPointer) {
    unsafe process.pointee.sequence = process.pointee.sequence &+ 1
    request.magic = MN_MAGIC
    request.version = UInt16(MN_ABI_VERSION)
    request.kind = UInt16(kind)
    request.sequence = unsafe process.pointee.sequence
  }

  /// How long an answer is waited for, ns: what the connection's socket says.
  private static var patience: UInt64 { 500_000_000 }
  /// When a daemon that leaves a question without an answer is taken for lost, ns.
  private static var abandonment: UInt64 { 5_000_000_000 }

  /// Sends `request` and waits for its answer. The caller holds the process's lock.
  ///
  /// A daemon that does not answer in time is only slow: its engines have our datagrams, so everything stays as it is. It is asked
  /// nothing more until the answer is there (`hasCaughtUp`).
  ///
  /// - Parameter socket: what the question is about.
  /// - Returns: 0 or the errno value that the daemon answered; nil when it is slow or gone.
  @inline(never)
  static func exchange(
    _ process: ProcessPointer, _ request: inout mn_request, passing fd: Int32, _ answer: inout Answer, for socket: SocketPointer?
  ) -> Int32? {
    guard unsafe hasCaughtUp(process) else { return nil }
    let now = mn_sys_nanoseconds()
    request.deadline = now &+ patience
    let result = unsafe send(process.pointee.control, &request, passing: fd)
      ? receive(process.pointee.control, &answer, sequence: request.sequence) : 0
    if result > 0 { return answer.reply.status }
    if result == -Int64(MN_EAGAIN) {
      unsafe mn_log(2, "the daemon is slow", 0, 0)
      unsafe process.pointee.unanswered = request.sequence
      unsafe process.pointee.unansweredSince = now
      unsafe process.pointee.unansweredSocket = socket
      unsafe Loss.postpone(process)
    } else {
      unsafe Loss.all(process)
    }
    return nil
  }

  /// Takes the answer that a slow daemon owes, if it is there by now. The caller holds the process's lock.
  ///
  /// - Returns: whether the daemon may be asked something.
  @inline(never)
  static func hasCaughtUp(_ process: ProcessPointer) -> Bool {
    if unsafe process.pointee.unanswered == 0 { return true }
    var answer = Answer()
    defer { answer.discard() }
    let result = unsafe receive(
      process.pointee.control, &answer, sequence: process.pointee.unanswered, flags: Int32(MN_MSG_DONTWAIT))
    if result == -Int64(MN_EAGAIN) {
      unsafe Loss.postpone(process)
      if unsafe mn_sys_nanoseconds() &- process.pointee.unansweredSince > abandonment { unsafe Loss.all(process) }
      return false
    }
    if result <= 0 {
      unsafe Loss.all(process)
      return false
    }
    unsafe process.pointee.unanswered = 0
    guard answer.reply.status == 0 else { return true }
    let socket = unsafe process.pointee.unansweredSocket
    switch Int(answer.reply.kind) {
    case MN_REQUEST_CHANNEL: _ = unsafe map(process, &answer, at: 0)
    case MN_REQUEST_OPEN: unsafe Socket.openedLate(socket, process, &answer)
    default: if let socket = unsafe socket { unsafe socket.pointee.local = Name(mapped: answer.reply.local, port: answer.reply.local_port) }
    }
    return true
  }

  @inline(never)
  static func send(_ socket: Int32, _ request: inout mn_request, passing fd: Int32, flags: Int32 = 0) -> Bool {
    // A control message with one descriptor: cmsghdr (16 bytes), the descriptor, padding.
    var control: (mn_cmsghdr, Int32, Int32) = (mn_cmsghdr(length: 20, level: Int32(MN_SOL_SOCKET), type: 1), fd, 0)
    let sent = unsafe withUnsafeMutableBytes(of: &request) { bytes in
      unsafe withUnsafeMutableBytes(of: &control) { control in
        var vector = unsafe mn_iovec(base: bytes.baseAddress!, length: bytes.count)
        return unsafe withUnsafeMutablePointer(to: &vector) { vector in
          var message = unsafe mn_msghdr(
            name: nil, name_length: 0, vectors: vector, vector_count: 1, control: fd >= 0 ? control.baseAddress! : nil,
            control_length: fd >= 0 ? 24 : 0, flags: 0)
          while true {
            let result = unsafe mn_sys_sendmsg(socket, &message, flags | Int32(MN_MSG_NOSIGNAL))
            if result != -Int64(MN_EINTR) { return result }
          }
        }
      }
    }
    return sent == Int64(MemoryLayout<mn_request>.size)
  }

  /// - Returns: more than 0: the answer to question `sequence`; -EAGAIN: none in time; else the connection is of no use.
  static func receive(_ socket: Int32, _ answer: inout Answer, sequence: UInt32, flags: Int32 = 0) -> Int64 {
    while true {
      var reply = mn_reply()
      // Room for the cmsghdr and 18 descriptors.
      var control: InlineArray<12, UInt64> = .init(repeating: 0)
      let result = unsafe withUnsafeMutableBytes(of: &reply) { bytes in
        unsafe withUnsafeMutableBytes(of: &control) { control in
          var vector = unsafe mn_iovec(base: bytes.baseAddress!, length: bytes.count)
          return unsafe withUnsafeMutablePointer(to: &vector) { vector in
            var message = unsafe mn_msghdr(
              name: nil, name_length: 0, vectors: vector, vector_count: 1, control: control.baseAddress!,
              control_length: control.count, flags: 0)
            let result = unsafe mn_sys_recvmsg(socket, &message, flags | Int32(MN_MSG_CMSG_CLOEXEC))
            if unsafe result > 0 && message.control_length >= 20 {
              let header = unsafe control.load(as: mn_cmsghdr.self)
              if header.level == Int32(MN_SOL_SOCKET) && header.type == 1 && header.length <= control.count {
                answer.descriptorCount = min((Int(header.length) - 16) / 4, 18)
                for index in 0..<answer.descriptorCount {
                  answer.descriptors[index] = unsafe control.load(fromByteOffset: 16 + index * 4, as: Int32.self)
                }
              }
            }
            return result
          }
        }
      }
      if result == -Int64(MN_EINTR) { continue }
      if result < 0 { return result }
      guard result == Int64(MemoryLayout<mn_reply>.size), reply.magic == MN_MAGIC, reply.sequence == sequence else {
        answer.discard()
        return 0
      }
      answer.reply = reply
      return result
    }
  }

  /// Opens a channel. The caller holds the process's lock.
  static func openChannel(_ process: ProcessPointer) -> UnsafeMutablePointer<Channel>? {
    guard unsafe process.pointee.channelCount < Int(MN_CHANNELS_PER_PROCESS_MAX) else { return nil }
    var request = mn_request()
    unsafe fill(&request, kind: MN_REQUEST_CHANNEL, process)
    var answer = Answer()
    defer { answer.discard() }
    guard unsafe exchange(process, &request, passing: -1, &answer, for: nil) == 0 else { return nil }
    return unsafe map(process, &answer, at: 0)
  }

  /// The channel of an endpoint that this process has joined.
  static func joinedChannel(_ process: ProcessPointer, _ answer: inout Answer) -> UnsafeMutablePointer<Channel>? {
    for index in 0..<(unsafe process.pointee.channelCount) {
      let channel = unsafe process.pointee.channels + index
      if unsafe channel.pointee.identifier == answer.reply.channel { return unsafe channel }
    }
    guard let channel = unsafe map(process, &answer, at: 1) else { return nil }
    // Its free blocks are the other process's.
    unsafe channel.pointee.inherited = true
    return unsafe channel
  }

  /// Maps the channel whose descriptors an answer brings from `first` on: memory, then doorbells. The caller holds the process's lock.
  @inline(never)
  private static func map(_ process: ProcessPointer, _ answer: inout Answer, at first: Int) -> UnsafeMutablePointer<Channel>? {
    let size = Int(answer.reply.size)
    guard unsafe process.pointee.channelCount < Int(MN_CHANNELS_PER_PROCESS_MAX), answer.descriptorCount > first + 1,
      size >= Int(MN_CHANNEL_HEADER), size < 1 << 40,
      let base = unsafe mn_sys_map_shared(answer.descriptors[first], size, true)
    else { return nil }
    let header = unsafe base.load(as: mn_channel.self)
    let power = header.tx_capacity & (header.tx_capacity &- 1) == 0 && header.rx_capacity & (header.rx_capacity &- 1) == 0
    guard header.magic == MN_MAGIC, header.version == MN_ABI_VERSION, power,
      header.tx_capacity >= MN_RING_MIN, header.tx_capacity <= MN_RING_MAX,
      header.rx_capacity >= MN_RING_MIN, header.rx_capacity <= MN_RING_MAX,
      header.endpoint_capacity <= MN_CHANNEL_ENDPOINTS_MAX, header.engine_count >= 1, header.engine_count <= MN_ENGINES_MAX,
      answer.descriptorCount == first + 1 + Int(header.engine_count),
      mn_channel_size(header.endpoint_capacity, header.engine_count, header.tx_capacity, header.rx_capacity)
        <= UInt64(size)
    else {
      unsafe mn_sys_unmap_shared(base, size)
      return nil
    }
    var channel = unsafe Channel(
      base: base, identifier: answer.reply.channel, token: header.token, capacity: header.endpoint_capacity,
      engineCount: header.engine_count, txCapacity: header.tx_capacity, rxCapacity: header.rx_capacity,
      doorbells: .init(repeating: -1), full: false, inherited: false)
    for engine in 0..<Int(header.engine_count) { channel.doorbells[engine] = Process.hide(answer.take(first + 1 + engine)) }
    let place = unsafe process.pointee.channels + process.pointee.channelCount
    unsafe place.initialize(to: channel)
    unsafe process.pointee.channelCount += 1
    return unsafe place
  }

  private static func staticPointer(_ text: StaticString) -> UnsafePointer<CChar> {
    unsafe UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
  }
}
