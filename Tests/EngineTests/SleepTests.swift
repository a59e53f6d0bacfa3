import CLinux
import CMachnetABI
import Glibc
import EngineBench
import MachnetChannel
import Testing

@testable import MachnetEngine

/// An engine on a thread of its own.
private final class Running {
  let directory = TestDirectory()
  let control: EngineControl
  let channel = TestChannel(identifier: 1)
  private var thread = pthread_t()

  init(_ polling: Polling, idleMicroseconds: Int = 50) {
    var options = EngineOptions(index: 0, directory: directory.directory)
    options.polling = polling
    options.idleMicroseconds = idleMicroseconds
    control = EngineControl(options: options)!
    _ = try! unsafe control.addChannel(
      identifier: 1, base: channel.base, size: channel.size, doorbell: channel.doorbell)
    let status = pthread_create(
      &thread, nil,
      { raw in
        let control = Unmanaged<EngineControl>.fromOpaque(raw!).takeRetainedValue()
        var engine = Engine<NoPackets>(control: control)
        engine.run()
        return nil
      }, Unmanaged.passRetained(control).toOpaque())
    precondition(status == 0)
  }

  func open(_ index: UInt32, _ port: UInt16) -> Application {
    let application = Application(channel, index, directory.directory)
    let ticket = try! control.openEndpoint(application.reference, EndpointIdentity(loopback, port, application))
    #expect(control.wait(for: ticket))
    return application
  }

  var isAsleep: Bool { unsafe mn_load_acquire_u32(directory.directory.engineWord(0)) != 0 }

  func end() {
    control.stop()
    pthread_join(thread, nil)
  }
}

/// Yields until a condition is true; false after ten seconds.
private func comesTrue(_ condition: () -> Bool) -> Bool {
  let limit = mn_linux_monotonic() + 10_000_000_000
  while !condition() {
    if mn_linux_monotonic() > limit { return false }
    mn_linux_yield()
  }
  return true
}

@Suite(.serialized) struct Sleeping {
  @Test(arguments: Polling.allCases)
  func `every datagram arrives, however the engine waits`(_ polling: Polling) {
    let running = Running(polling)
    let alice = running.open(0, 1000)
    let bob = running.open(1, 2000)
    for number in 0..<2000 {
      // Now and then long enough for an adaptive engine to fall asleep.
      if polling == .adaptive && number % 100 == 0 { #expect(comesTrue { running.isAsleep }) }
      #expect(alice.send([UInt8(truncatingIfNeeded: number)], to: loopback, 2000))
      var got: Received?
      #expect(comesTrue {
        got = bob.receive()
        return got != nil
      })
      #expect(got?.payload == [UInt8(truncatingIfNeeded: number)])
    }
    if polling == .adaptive { #expect(running.control.counters()[.sleeps] >= 20) }
    if polling != .adaptive { #expect(running.control.counters()[.sleeps] == 0) }
    running.end()
  }

  @Test func `an idle adaptive engine does nothing at all`() {
    let running = Running(.adaptive)
    _ = running.open(0, 1000)
    #expect(comesTrue { running.isAsleep })
    let before = running.control.counters()[.iterations]
    mn_linux_sleep(200_000_000)
    #expect(running.control.counters()[.iterations] - before < 1000)
    running.end()
  }

  @Test func `orders wake a sleeping engine, and so does the end`() {
    let running = Running(.adaptive, idleMicroseconds: 0)
    for round in 0..<50 {
      #expect(comesTrue { running.isAsleep })
      let application = running.open(0, UInt16(1000 + round))
      let ticket = try! running.control.closeEndpoint(application.reference)
      #expect(running.control.wait(for: ticket))
    }
    #expect(comesTrue { running.isAsleep })
    running.end()
  }

  @Test func `a receiver that fills its eventfd and makes it blocking stops nobody else`() {
    let running = Running(.adaptive, idleMicroseconds: 0)
    let alice = running.open(0, 1000)
    let mallory = running.open(1, 2000)
    let bob = running.open(2, 3000)
    #expect(fcntl(mallory.eventDescriptor, F_SETFL, 0) == 0)
    var most = UInt64.max - 1
    #expect(write(mallory.eventDescriptor, &most, 8) == 8)
    let word = unsafe mallory.channel.block(1) + Int(MN_OFFSET_ENDPOINT_RX_WAIT)
    for number in 0..<100 {
      _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED))
      mn_fence()
      // A write(2) to the full counter would sleep until somebody reads it: nobody does.
      #expect(alice.send([1], to: loopback, 2000))
      #expect(comesTrue { mallory.receive() != nil })
      #expect(comesTrue { unsafe mn_load_acquire_u32(word) == UInt32(MN_WAIT_SIGNALLED) })
      #expect(alice.send([UInt8(number)], to: loopback, 3000))
      var got: Received?
      #expect(comesTrue {
        got = bob.receive()
        return got != nil
      })
      #expect(got?.payload == [UInt8(number)])
      if got == nil { break }
    }
    // A stuck engine would keep the test from ending; now the counter may be emptied.
    _ = mn_linux_eventfd_take(mallory.eventDescriptor)
    running.end()
  }

  @Test func `a receiver that sleeps on its eventfd is never forgotten`() {
    let running = Running(.adaptive, idleMicroseconds: 0)
    let alice = running.open(0, 1000)
    let bob = running.open(1, 2000)
    let word = unsafe bob.channel.block(1) + Int(MN_OFFSET_ENDPOINT_RX_WAIT)
    for number in 0..<500 {
      // The receiver's side of the protocol: arm, fence, look again, sleep.
      _ = unsafe mn_exchange_u32(word, UInt32(MN_WAIT_ARMED))
      mn_fence()
      #expect(alice.send([UInt8(truncatingIfNeeded: number)], to: loopback, 2000))
      var poll = pollfd(fd: bob.eventDescriptor, events: Int16(POLLIN), revents: 0)
      #expect(Glibc.poll(&poll, 1, 10_000) == 1, "datagram \(number)")
      _ = mn_linux_eventfd_take(bob.eventDescriptor)
      #expect(bob.receive()?.payload == [UInt8(truncatingIfNeeded: number)])
      #expect(bob.receive() == nil)
    }
    running.end()
  }
}
