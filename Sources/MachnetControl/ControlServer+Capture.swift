import CMachnetABI
import Glibc
import Logging
import MachnetEngine

extension ControlServer {
  /// A capture that is going on: its memory is mapped as long as an engine may write there.
  final class ActiveCapture {
    let owner: UInt64
    let memories: [SharedMemory]

    init(owner: UInt64, memories: [SharedMemory]) {
      self.owner = owner
      self.memories = memories
    }
  }

  /// Starts a capture, which ends with the connection.
  ///
  /// - Returns: the memory of each engine.
  /// - Throws: EPERM (it shows what everybody sends), EBUSY (one at a time), ENOMEM, ENOBUFS.
  func startCapture(_ request: mn_request, _ connection: Connection, _ name: UInt64, _ reply: inout mn_reply) throws(Refusal)
    -> [Descriptor]
  {
    guard connection.isOperator else { throw Refusal(EPERM) }
    guard capture == nil else { throw Refusal(EBUSY) }
    guard request.snap > 0, let address = ipv4(request.peer.words) else { throw .lie }
    var memories: [SharedMemory] = []
    do throws(SystemError) {
      for engine in engines {
        let memory = try SharedMemory(name: "machnet-capture", size: Int(MN_PAGE + MN_CAPTURE_DATA), sealing: .size)
        let header = unsafe memory.base.assumingMemoryBound(to: mn_capture.self)
        unsafe header.pointee.magic = MN_MAGIC
        unsafe header.pointee.version = UInt32(MN_ABI_VERSION)
        unsafe header.pointee.snap = UInt32(request.snap)
        unsafe header.pointee.interface_count = UInt32(engine.options.interfaces.count)
        memories.append(memory)
      }
    } catch {
      log.warning("no capture for pid \(connection.pid): \(error)")
      throw Refusal(ENOMEM)
    }
    capture = ActiveCapture(owner: name, memories: memories)
    let started = order { (engine) throws(EngineControl.Refusal) in
      let base = unsafe memories[Int(engine.options.index)].base
      return unsafe try engine.capture(into: base, address: address, port: request.peer_port, snap: Int(request.snap))
    }
    guard started else {
      endCapture(of: name)
      throw Refusal(ENOBUFS)
    }
    log.info("pid \(connection.pid) captures traffic")
    reply.engine = UInt32(engines.count)
    reply.size = UInt64(MN_PAGE + MN_CAPTURE_DATA)
    return memories.map(\.descriptor)
  }

  /// The capture of a connection that has ended. Its memory goes when every engine has let go of it; an engine that stands
  /// still keeps it, and with it the place of the next capture.
  func endCapture(of name: UInt64) {
    guard let active = capture, active.owner == name else { return }
    let ended = order { (engine) throws(EngineControl.Refusal) in unsafe try engine.capture(into: nil) }
    if ended { capture = nil }
  }
}
