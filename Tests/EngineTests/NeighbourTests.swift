import MachnetWire
import Testing

@testable import MachnetEngine

private let second: UInt64 = 1_000_000_000

@Suite struct NeighbourTable {
  private func packet(_ number: Int) -> Packet {
    let place = unsafe UnsafeMutableRawPointer(bitPattern: 0x1000 + number)!
    return unsafe Packet(unsafe: place, data: place, length: 0, capacity: 0)
  }

  @Test func `an unknown address is asked for once, packets wait and come out in order`() {
    var table = Neighbours()
    defer { table.release() }
    guard case .waitAndAsk(let entry)? = table.resolve(1, now: 5) else {
      Issue.record("not asked")
      return
    }
    for number in 0..<3 { #expect(table.wait(packet(number), in: entry) == nil) }
    guard case .wait(let again)? = table.resolve(1, now: 6) else {
      Issue.record("asked twice")
      return
    }
    #expect(again == entry)
    #expect(table.learn(1, 0xAA, create: false, now: 7) == entry)
    for number in 0..<3 { #expect(table.takeWaiting(entry)?.handle == packet(number).handle) }
    #expect(table.takeWaiting(entry) == nil)
    guard case .send(0xAA)? = table.resolve(1, now: 8) else {
      Issue.record("not known")
      return
    }
  }

  @Test func `questions are repeated ever more slowly, then given up`() {
    var table = Neighbours()
    defer { table.release() }
    guard case .waitAndAsk(let entry)? = table.resolve(1, now: 0) else { return }
    var asked: [UInt64] = []
    var gaveUp: UInt64? = nil
    for step in 0...1000 {
      let now = UInt64(step) * 10_000_000
      switch table.tick(entry, now: now) {
      case .ask: asked.append(now / 1_000_000)
      case .unresolved: gaveUp = now / 1_000_000
      default: break
      }
    }
    #expect(asked == [100, 400, 1400, 2400])
    #expect(gaveUp == 3400)
    guard case .waitAndAsk? = table.resolve(1, now: 20 * second) else {
      Issue.record("not asked anew")
      return
    }
  }

  @Test func `an old answer is used while it is checked, and forgotten when nobody confirms it`() {
    var table = Neighbours()
    defer { table.release() }
    let entry = table.learn(1, 0xAA, create: true, now: 0)
    guard case .send? = table.resolve(1, now: 29 * second) else {
      Issue.record("aged too soon")
      return
    }
    guard case .sendAndProbe(0xAA)? = table.resolve(1, now: 31 * second) else {
      Issue.record("not probed")
      return
    }
    guard case .send(0xAA)? = table.resolve(1, now: 31 * second) else {
      Issue.record("probed for each packet")
      return
    }
    var probes = 0
    var isForgotten = false
    for step in 0...1000 {
      switch table.tick(entry, now: 31 * second + UInt64(step) * 10_000_000) {
      case .probe: probes += 1
      case .unresolved: isForgotten = true
      default: break
      }
    }
    #expect(probes == 4 && isForgotten)
  }

  @Test func `strangers are not remembered, a full queue gives up its oldest, a full set its oldest entry`() {
    var table = Neighbours()
    defer { table.release() }
    #expect(table.learn(1, 0xAA, create: false, now: 0) == none)
    guard case .waitAndAsk(let entry)? = table.resolve(1, now: 0) else { return }
    for number in 0..<128 { #expect(table.wait(packet(number), in: entry) == nil) }
    #expect(table.wait(packet(128), in: entry)?.handle == packet(0).handle)
    // Thousands of addresses: the one with packets waiting stays, no answer is ever wrong.
    for address in 2..<UInt32(5000) { _ = table.learn(address, UInt64(address), create: true, now: UInt64(address)) }
    #expect(table.find(1) == entry)
    var known = 0
    for address in 2..<UInt32(5000) where table.find(address) != none {
      known += 1
      #expect(table.entries[table.find(address)].mac == UInt64(address))
    }
    #expect(known == EngineLimits.neighbours - 1)
    #expect(table.find(4999) != none)
    var waiting = 0
    while table.takeWaiting(entry) != nil { waiting += 1 }
    #expect(waiting == 128)
  }
}

@Suite struct Fragments {
  private let key = Reassembly.Key(source: 1, destination: 2, identification: 3, ipProtocol: 17)

  private func add(
    _ table: inout Reassembly, _ offset: Int, _ data: [UInt8], more: Bool, key: Reassembly.Key? = nil, now: UInt64 = 0
  ) -> (outcome: String, payload: [UInt8]) {
    var data = data
    return unsafe data.withUnsafeMutableBytes { raw in
      var empty: UInt8 = 0
      return unsafe withUnsafeMutableBytes(of: &empty) { spare in
        let bytes = unsafe Bytes(unsafe: raw.baseAddress ?? spare.baseAddress!, count: raw.count)
        switch table.add(key ?? self.key, offset: offset, more: more, bytes, ttl: 1, tos: 2, now: now) {
        case .incomplete: return ("incomplete", [])
        case .dropped(let reason): return ("\(reason)", [])
        case .complete(let whole, _, _): return ("complete", (0..<whole.count).map { whole.u8($0) })
        }
      }
    }
  }

  @Test func `every order of the pieces gives the whole, repetitions change nothing`() {
    let whole = (0..<37).map { UInt8($0) }
    let pieces = [(0, 8), (8, 24), (24, 32), (32, 37)]
    func permutations(_ items: [Int]) -> [[Int]] {
      items.isEmpty ? [[]] : items.flatMap { item in permutations(items.filter { $0 != item }).map { [item] + $0 } }
    }
    var table = Reassembly()
    defer { table.release() }
    for order in permutations([0, 1, 2, 3]) {
      for (step, index) in order.enumerated() {
        let (from, to) = pieces[index]
        let got = add(&table, from, Array(whole[from..<to]), more: to != 37)
        #expect(got.outcome == (step == 3 ? "complete" : "incomplete"), "order \(order)")
        if step == 3 { #expect(got.payload == whole) }
        // Again, as a network may.
        if step < 3 { #expect(add(&table, from, Array(whole[from..<to]), more: to != 37).outcome == "incomplete") }
      }
      #expect(table.used == 0)
    }
  }

  @Test func `overlaps and contradictions end the datagram`() {
    let eight = [UInt8](repeating: 1, count: 8)
    let conflicts: [[(Int, Int, Bool)]] = [
      [(0, 16, true), (8, 16, true)],  // overlap
      [(0, 8, false), (8, 8, true)],  // beyond the end
      [(8, 8, true), (0, 8, false)],  // an end before what is there
      [(8, 8, false), (8, 16, false)],  // two ends
    ]
    for (number, conflict) in conflicts.enumerated() {
      var table = Reassembly()
      defer { table.release() }
      var last = ""
      for (offset, length, more) in conflict where last != "complete" {
        last = add(&table, offset, Array(repeating: 1, count: length), more: more).outcome
      }
      if number == 1 { #expect(last == "complete") } else { #expect(last == "fragmentOverlap" && table.used == 0, "\(number)") }
    }
    var table = Reassembly()
    defer { table.release() }
    #expect(add(&table, 0, [], more: true).outcome == "fragmentMalformed")
    #expect(add(&table, 0, eight + [1], more: true).outcome == "fragmentMalformed")
    #expect(add(&table, 65_512, eight, more: false).outcome == "fragmentMalformed")
    #expect(add(&table, 65_528, eight, more: true).outcome == "fragmentMalformed")
  }

  @Test func `memory is bounded by number and by time`() {
    var table = Reassembly()
    defer { table.release() }
    for number in 0..<UInt16(100) {
      var other = key
      other.identification = number
      #expect(add(&table, 0, [UInt8](repeating: 1, count: 8), more: true, key: other, now: UInt64(number)).outcome == "incomplete")
    }
    #expect(table.used == Reassembly.contextMax && table.evicted == 36)
    var newest = key
    newest.identification = 99
    #expect(add(&table, 8, [2], more: false, key: newest, now: 100).outcome == "complete")
    #expect(table.expire(now: Reassembly.lifetime + 50) == 15)
    #expect(table.expire(now: Reassembly.lifetime + 1000) == 48)
    #expect(table.used == 0)
  }
}
