import Glibc
import MachnetDPDK
import MachnetEngine
import Testing

/// The layer can be started once per process: all tests share it, on memory that has nothing huge about it.
let layer: Result<Void, DPDKError> = {
  var options = EAL.Options()
  options.usesHugepages = false
  options.memoryMegabytes = 256
  do throws(DPDKError) {
    try EAL.start(options)
    return .success(())
  } catch {
    return .failure(error)
  }
}()

/// A directory that goes away with its owner.
final class TemporaryDirectory {
  let path: String

  init() throws {
    var template = Array("/tmp/machnet-test-XXXXXX".utf8CString)
    try #require(unsafe mkdtemp(&template) != nil)
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    if let stream = unsafe opendir(path) {
      while let entry = unsafe readdir(stream) {
        unsafe withUnsafePointer(to: &entry.pointee.d_name) {
          unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { _ = unsafe unlinkat(dirfd(stream), $0, 0) }
        }
      }
      unsafe closedir(stream)
    }
    unsafe rmdir(path)
  }
}

/// Burst memory as an engine has it.
@safe
struct Burst: ~Copyable {
  let base: UnsafeMutablePointer<Packet>
  init() { unsafe base = .allocate(capacity: packetBurst) }
  deinit { unsafe base.deallocate() }

  func fill(_ index: Int, _ bytes: [UInt8]) {
    unsafe UnsafeMutableRawBufferPointer(start: base[index].data, count: bytes.count).copyBytes(from: bytes)
    unsafe base[index].length = Int32(bytes.count)
  }

  func bytes(_ index: Int) -> [UInt8] {
    unsafe [UInt8](UnsafeRawBufferPointer(start: base[index].data, count: Int(base[index].length)))
  }
}

/// Two ports of this process, joined by a memif socket.
func memifPair(_ directory: TemporaryDirectory, packets: Int? = nil, queues: Int = 1) throws -> (Port, Port) {
  var ports: [Port] = []
  for (name, role) in [("net_memif0", "server"), ("net_memif1", "client")] {
    var options = Port.Options(device: .vdev("\(name),role=\(role),socket=\(directory.path)/memif.sock"))
    options.packets = packets
    options.queues = queues
    ports.append(try Port(options))
  }
  return (ports[0], ports[1])
}

/// Does `step` until it says true; a deadline instead of a hang.
func eventually(_ what: Comment, _ step: () -> Bool) {
  let clock = ContinuousClock()
  let deadline = clock.now + .seconds(20)
  while !step() {
    guard clock.now < deadline else {
      Issue.record(what)
      return
    }
    sched_yield()
  }
}
