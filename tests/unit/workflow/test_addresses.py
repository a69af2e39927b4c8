from ipaddress import IPv4Interface

from hpcmass.workflow.addresses import best_addresses, own_addresses, own_interfaces

LOGIN = ["192.0.2.2", "10.213.5.1", "10.213.4.1"]


def test_a_node_takes_the_address_in_its_own_network():
    # Seen: it took another cluster's bridge, which answered first, and was lost when that went down.
    assert best_addresses(LOGIN, [IPv4Interface("10.213.4.11/24")]) == ["10.213.4.1"]
    two = [IPv4Interface("10.213.4.11/24"), IPv4Interface("192.0.2.9/24")]
    assert best_addresses(LOGIN, two) == ["192.0.2.2", "10.213.4.1"]


def test_a_node_in_another_network_tries_all():
    assert best_addresses(LOGIN, [IPv4Interface("172.16.0.3/16")]) == LOGIN
    assert best_addresses(LOGIN, []) == LOGIN


def test_a_bridge_that_both_machines_have_leads_to_the_node_itself():
    driver = ["10.1.0.5", "192.168.122.1"]
    here = [IPv4Interface("10.2.0.7/16"), IPv4Interface("192.168.122.1/24")]
    assert best_addresses(driver, here) == ["10.1.0.5"]  # in no network of the node's: it is routed
    assert best_addresses([*driver, "10.2.9.9"], here) == ["10.2.9.9"]
    assert best_addresses([*driver, "172.30.0.2"], here) == ["10.1.0.5", "172.30.0.2"]


def test_on_the_drivers_machine_it_is_the_loopback():
    here = [IPv4Interface(f"{one}/24") for one in (*LOGIN, "10.9.9.9")]
    assert best_addresses(LOGIN, here) == ["127.0.0.1"]


def test_this_machines_interfaces():
    assert [str(each.ip) for each in own_interfaces()] == [a for a in own_addresses() if a != "127.0.0.1"]
