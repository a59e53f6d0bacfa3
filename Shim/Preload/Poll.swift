public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// poll, ppoll, select and pselect over offloaded sockets and kernel descriptors in one set.
@safe
private struct PollWait {
  let entries: UnsafeMutablePointer<mn_pollfd>
  let count: Int
  /// Offloaded sockets in the set, and those that may become so.
  var offloaded = 0
  var undecided = 0
  /// Descriptors of which only the kernel can tell everything.
  var kernels = 0
  /// Sockets without an engine that have input.
  var old = 0
  var ready: Int32 = 0
  /// Offloaded sockets whose rings have something that was asked for.
  var input = 0

  @inline(never)
  private func anySocket(_ index: Int) -> SocketPointer? {
    let fd = unsafe entries[index].descriptor
    guard fd >= 0, let entry = unsafe mn_table_get(fd), UInt(bitPattern: entry) > 1 else { return nil }
    return unsafe Socket.from(entry)
  }

  private func socket(_ index: Int) -> SocketPointer? {
    guard let socket = unsafe anySocket(index), unsafe socket.pointee.hasLiveRings else { return nil }
    return unsafe socket
  }

  /// The kick of a socket that may get an endpoint while we wait; nil for all others.
  private func kick(_ index: Int) -> Int32? {
    guard let socket = unsafe anySocket(index), unsafe socket.pointee.undecided else { return nil }
    return unsafe Wait.kick(socket)
  }

  /// Fills `returned` of the offloaded sockets from their rings; of all others with 0.
  @inline(never)
  mutating func look() {
    offloaded = 0
    undecided = 0
    ready = 0
    input = 0
    kernels = 0
    old = 0
    for index in 0..<count {
      var returned = 0
      if let socket = unsafe socket(index) {
        offloaded += 1
        let wanted = unsafe Int(entries[index].events)
        if wanted & inputBits != 0, unsafe Socket.hasInput(socket) {
          returned |= wanted & inputBits
        }
        if returned != 0 { input += 1 }
        // What a shutdown means (POLLRDHUP, POLLHUP) is the shadow's to tell.
        if unsafe socket.pointee.engineLost || Socket.flags(socket) & UInt32(MN_SOCKET_SHUTDOWN_READ | MN_SOCKET_SHUTDOWN_WRITE) != 0 { kernels += 1 }
        if wanted & outputBits != 0, unsafe Socket.hasRoom(socket) { returned |= wanted & outputBits }
        if unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0 { returned |= MN_POLLERR }
      } else if kick(index) != nil {
        undecided += 1
      } else if unsafe entries[index].descriptor >= 0 {
        kernels += 1
        // A socket that has left Machnet, and has not read its rings to the end.
        if let socket = unsafe anySocket(index), unsafe socket.pointee.hasOldInput && Socket.hasInput(socket) {
          returned = unsafe Int(entries[index].events) & inputBits
          old += 1
        }
      }
      unsafe entries[index].returned = Int16(truncatingIfNeeded: returned)
      if returned != 0 { ready += 1 }
    }
  }

  /// Asks the kernel about the whole set, the sockets' eventfds behind it, and the daemon's connection last; joins its
  /// answer to what the rings have said.
  ///
  /// - Parameter left: 0: only a look; negative: for ever; else ns. It may sleep for less (`Wait.roomLimit`).
  /// - Returns: a negative errno value, or 0 with `ready` brought up to date.
  mutating func askKernel(_ process: ProcessPointer, _ left: Int64, _ mask: UnsafePointer<UInt64>?) -> Int32 {
    let total = count + offloaded + undecided + 1
    var few: InlineArray<64, mn_pollfd> = .init(repeating: mn_pollfd(descriptor: -1, events: 0, returned: 0))
    if total <= 64 {
      return unsafe withUnsafeMutableBytes(of: &few) {
        unsafe ask($0.baseAddress!.assumingMemoryBound(to: mn_pollfd.self), process, left, mask)
      }
    }
    let size = total * MemoryLayout<mn_pollfd>.stride
    guard let memory = unsafe mn_sys_map(size) else { return -Int32(MN_ENOMEM) }
    defer { unsafe mn_sys_unmap(memory, size) }
    return unsafe ask(memory.bindMemory(to: mn_pollfd.self, capacity: total), process, left, mask)
  }

  @inline(never)
  private mutating func ask(
    _ all: UnsafeMutablePointer<mn_pollfd>, _ process: ProcessPointer, _ left: Int64, _ mask: UnsafePointer<UInt64>?
  ) -> Int32 {
    var extra = count
    var left = left
    for index in 0..<count {
      unsafe all[index] = entries[index]
      unsafe all[index].returned = 0
      guard let socket = unsafe socket(index) else {
        // (A socket may become offloaded between two looks; then there is no more room for it than for its kick.)
        if extra < count + offloaded + undecided, let kick = kick(index) {
          unsafe all[extra] = mn_pollfd(descriptor: kick, events: Int16(MN_POLLIN), returned: 0)
          extra += 1
        }
        continue
      }
      if extra == count + offloaded + undecided { continue }
      // Room is the TX ring's to tell.
      unsafe all[index].events &= ~Int16(outputBits)
      let wanted = unsafe Int(entries[index].events)
      let isDeaf = unsafe wanted & inputBits == 0 && Wait.isDeafToRoom(socket)
      if wanted & outputBits != 0 { left = Wait.roomLimit(left, isDeaf) }
      let isTold = wanted & (inputBits | outputBits) != 0 && !isDeaf
      let event = unsafe left != 0 && isTold ? socket.pointee.event : -1
      unsafe all[extra] = mn_pollfd(descriptor: event, events: Int16(MN_POLLIN), returned: 0)
      extra += 1
    }
    unsafe all[extra] = mn_pollfd(descriptor: left != 0 ? Process.connection(process) : -1, events: 0, returned: 0)
    mn_has_unwind_tables()
    let result = unsafe Wait.sleep(all, UInt64(extra + 1), left, mask, holding: nil)
    if result < 0 { return result }
    if unsafe all[extra].returned != 0 { _ = unsafe Loss.check(process) }
    ready = 0
    for index in 0..<count {
      unsafe entries[index].returned |= all[index].returned
      if unsafe entries[index].returned != 0 { ready += 1 }
    }
    return 0
  }

  /// Arms every offloaded socket of the set.
  ///
  /// - Returns: false when one is ready after all.
  @inline(never)
  func arm() -> Bool {
    var safe = true
    for index in 0..<count {
      guard let socket = unsafe socket(index) else { continue }
      let wanted = unsafe Int(entries[index].events)
      if wanted & inputBits != 0, unsafe !Wait.arm(socket, true) { safe = false }
      if wanted & outputBits != 0, unsafe !Wait.arm(socket, false) { safe = false }
    }
    return safe
  }

  /// - Parameter limit: ns; negative: for ever.
  /// - Returns: as poll(2), errno set on -1.
  @inline(never)
  mutating func run(_ limit: Int64, _ mask: UnsafeRawPointer?) -> Int32 {
    let programMask = unsafe mask?.assumingMemoryBound(to: UInt64.self)
    let call = Handled.atBegin
    guard let process = unsafe process, let directory = unsafe process.pointee.directory else {
      return unsafe kernelAlone(limit, programMask)
    }
    look()
    Loss.reattach()
    if offloaded + undecided + old == 0 { return unsafe kernelAlone(limit, programMask) }
    if ready > 0 {
      // Everything that is ready is to be told. Only where every descriptor is ours and some have input is the system
      // call left out, most times: what may be missing then (what came by a shadow, an error) is told a little later.
      if kernels + undecided == 0 && input > 0 && !turnOfKernel() { return ready }
      // There is room, as always: what this process sent to itself is to be seen beside it.
      if input == 0 {
        Wait.letLand()
        look()
      }
      // (A signal is no reason to hide what is ready.)
      _ = unsafe askKernel(process, 0, programMask)
      return ready
    }
    if limit == 0 {
      Wait.letLand()
      look()
      let result = unsafe askKernel(process, 0, programMask)
      return finish(result)
    }

    let deadline = limit < 0 ? UInt64.max : mn_sys_nanoseconds() &+ UInt64(limit)
    var spinner = Spinner(directory, deadline: deadline)
    var signals = unsafe Signals(since: call, areBlocked: programMask != nil)
    defer { signals.restore() }
    while offloaded > 0 {
      let step = spinner.step()
      look()
      if ready > 0 && kernels == 0 { return ready }
      if signals.haveCome(last: step != .look || ready > 0) { return finish(-Int32(MN_EINTR)) }
      if step == .over { break }
      if step == .lookAtKernel || ready > 0 {
        let result = unsafe withUnsafePointer(to: &signals.mask) { unsafe askKernel(process, 0, programMask ?? $0) }
        if ready > 0 { return ready }
        if result < 0 { return finish(result) }
      }
    }
    if signals.haveCome(last: true) { return finish(-Int32(MN_EINTR)) }
    while true {
      var left: Int64 = -1
      if deadline != UInt64.max {
        let now = mn_sys_nanoseconds()
        left = now >= deadline ? 0 : Int64(deadline - now)
      }
      if !arm() {
        look()
        if ready > 0 { left = 0 }
      }
      let asleep = Loss.limit(left)
      let result = unsafe withUnsafePointer(to: &signals.mask) { unsafe askKernel(process, asleep, programMask ?? $0) }
      if ready > 0 { return ready }
      if result < 0 { return finish(result) }
      Loss.reattach()
      look()
      if ready > 0 || left == 0 { return ready }
    }
  }

  private func turnOfKernel() -> Bool {
    pollTurn.wrappingAdd(1, ordering: .relaxed).newValue & 7 == 0
  }

  /// No socket of ours in the set.
  private mutating func kernelAlone(_ limit: Int64, _ mask: UnsafePointer<UInt64>?) -> Int32 {
    let result = unsafe Wait.sleep(entries, UInt64(count), limit, mask, holding: nil)
    ready = max(result, 0)
    return finish(min(result, 0))
  }

  /// Not to be called with an argument that changes `ready`: Swift would copy `self` first.
  private func finish(_ result: Int32) -> Int32 {
    if result < 0 {
      mn_set_errno(-result)
      return -1
    }
    return ready
  }
}

/// What a datagram in the RX rings means to poll(2).
private var inputBits: Int { MN_POLLIN | MN_POLLRDNORM }

/// What room in the TX ring means to poll(2).
private var outputBits: Int { MN_POLLOUT | MN_POLLWRNORM | MN_POLLWRBAND }

/// Shared by all threads; only its changing matters.
private let pollTurn = Atomic<UInt32>(0)

private func nanoseconds(_ timeout: UnsafePointer<mn_timespec>?) -> Int64? {
  guard let timeout = unsafe timeout else { return -1 }
  let seconds = unsafe timeout.pointee.seconds
  let rest = unsafe timeout.pointee.nanoseconds
  guard seconds >= 0, rest >= 0, rest < 1_000_000_000 else { return nil }
  return seconds > 9_000_000_000 ? -1 : seconds * 1_000_000_000 + rest
}

@c(mn_hook_poll)
public func poll(
  _ entries: UnsafeMutablePointer<mn_pollfd>?, _ count: UInt64, _ timeout: UnsafePointer<mn_timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
  guard let entries = unsafe entries, count > 0, count <= 1 << 20, let limit = unsafe nanoseconds(timeout),
    // (RLIMIT_NOFILE is never so low that a few entries would be too many.)
    count <= 64 || count <= UInt64(mn_sys_descriptor_limit(false))
  else {
    return unsafe mn_real_ppoll(entries, count, timeout, mask)
  }
  var wait = unsafe PollWait(entries: entries, count: Int(count))
  return unsafe wait.run(limit, mask)
}

/// A select set as the kernel sees it: bits in longs.
@safe
private struct DescriptorSet {
  let words: UnsafeMutablePointer<UInt64>?

  init(_ raw: UnsafeMutableRawPointer?) { unsafe words = raw?.assumingMemoryBound(to: UInt64.self) }

  func contains(_ fd: Int) -> Bool {
    guard let words = unsafe words else { return false }
    return unsafe words[fd >> 6] >> UInt64(fd & 63) & 1 != 0
  }

  func clear(_ count: Int) {
    guard let words = unsafe words else { return }
    for index in 0..<((count + 63) >> 6) { unsafe words[index] = 0 }
  }

  func insert(_ fd: Int) {
    guard let words = unsafe words else { return }
    unsafe words[fd >> 6] |= 1 << UInt64(fd & 63)
  }
}

/// select(2), as poll(2): eventfds may have numbers that no set of the program's can hold.
@c(mn_hook_select)
public func select(
  _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?,
  _ timeout: UnsafePointer<mn_timespec>?, _ mask: UnsafeRawPointer?, _ remaining: UnsafeMutablePointer<mn_timespec>
) -> Int32 {
  if let timeout = unsafe timeout { unsafe remaining.pointee = timeout.pointee }
  guard count >= 0, count <= 1 << 20, let limit = unsafe nanoseconds(timeout) else {
    return unsafe mn_real_pselect(count, read, write, except, timeout, mask)
  }
  let start = mn_sys_nanoseconds()
  let readers = unsafe DescriptorSet(read)
  let writers = unsafe DescriptorSet(write)
  let excepts = unsafe DescriptorSet(except)
  var used = 0
  for fd in 0..<Int(count) where readers.contains(fd) || writers.contains(fd) || excepts.contains(fd) { used += 1 }
  let size = max(used, 1) * MemoryLayout<mn_pollfd>.stride
  let result = unsafe withScratch(size) { memory -> Int32 in
    guard let memory = unsafe memory else {
      mn_set_errno(Int32(MN_ENOMEM))
      return -1
    }
    let entries = unsafe memory.bindMemory(to: mn_pollfd.self, capacity: max(used, 1))
    var at = 0
    var kernels = false
    for fd in 0..<Int(count) {
      var events = 0
      if readers.contains(fd) { events |= MN_POLLIN | MN_POLLRDNORM }
      if writers.contains(fd) { events |= MN_POLLOUT | MN_POLLWRNORM }
      if excepts.contains(fd) { events |= MN_POLLPRI }
      if events == 0 { continue }
      unsafe entries[at] = mn_pollfd(descriptor: Int32(fd), events: Int16(events), returned: 0)
      at += 1
      if unsafe mn_table_get(Int32(fd)) == nil { kernels = true }
    }
    // What is no open file when the call begins is an error. What is closed while it waits is ready for all that was asked.
    if kernels && limit != 0 {
      var none = mn_timespec(seconds: 0, nanoseconds: 0)
      _ = unsafe mn_sys_ppoll(entries, UInt64(at), &none, nil)
      if unsafe isAnyClosed(entries, at) { return -1 }
    }
    var wait = unsafe PollWait(entries: entries, count: at)
    let result = unsafe wait.run(limit, mask)
    if result < 0 { return -1 }
    if unsafe limit == 0 && isAnyClosed(entries, at) { return -1 }
    // The sets' meaning in terms of poll is in select(2), "Correspondence between select() and poll() notifications".
    let readable = MN_POLLIN | MN_POLLRDNORM | MN_POLLHUP | MN_POLLERR | MN_POLLNVAL
    let writable = MN_POLLOUT | MN_POLLWRNORM | MN_POLLERR | MN_POLLNVAL
    readers.clear(Int(count))
    writers.clear(Int(count))
    excepts.clear(Int(count))
    var bits: Int32 = 0
    for index in 0..<at {
      let entry = unsafe entries[index]
      let returned = Int(entry.returned)
      let events = Int(entry.events)
      if events & MN_POLLIN != 0 && returned & readable != 0 {
        readers.insert(Int(entry.descriptor))
        bits += 1
      }
      if events & MN_POLLOUT != 0 && returned & writable != 0 {
        writers.insert(Int(entry.descriptor))
        bits += 1
      }
      if events & MN_POLLPRI != 0 && returned & (MN_POLLPRI | MN_POLLNVAL) != 0 {
        excepts.insert(Int(entry.descriptor))
        bits += 1
      }
    }
    return bits
  }
  if limit >= 0 {
    let elapsed = mn_sys_nanoseconds() &- start
    let left = elapsed < UInt64(limit) ? UInt64(limit) - elapsed : 0
    unsafe remaining.pointee = mn_timespec(seconds: Int64(left / 1_000_000_000), nanoseconds: Int64(left % 1_000_000_000))
  }
  return result
}

private func isAnyClosed(_ entries: UnsafePointer<mn_pollfd>, _ count: Int) -> Bool {
  for index in 0..<count where unsafe entries[index].returned & Int16(MN_POLLNVAL) != 0 {
    mn_set_errno(Int32(MN_EBADF))
    return true
  }
  return false
}

/// Memory for the length of a call: the stack's when little is asked for, else a mapping of its own.
private func withScratch(_ size: Int, _ body: (UnsafeMutableRawPointer?) -> Int32) -> Int32 {
  if size <= 1024 {
    var few: InlineArray<128, UInt64> = .init(repeating: 0)
    return unsafe withUnsafeMutableBytes(of: &few) { unsafe body($0.baseAddress!) }
  }
  let memory = unsafe mn_sys_map(size)
  defer { if let memory = unsafe memory { unsafe mn_sys_unmap(memory, size) } }
  return unsafe body(memory)
}
